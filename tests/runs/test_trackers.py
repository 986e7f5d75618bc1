"""The trackers hold a run's figures and config, read back from their own files."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from bora.runs import trackers
from bora.train.module import TrainingModule
from tests.conftest import one_line, table
from tests.faults.processes import wait_for

TASKS = {"Pia Kjærsgaard": 12, "pia-kjærsgaard": 12, "π": 12}
SAFE = ["Pia-Kjaersgaard", "pia-kjaersgaard-2", "task"]
SMALL = "data=table data.path=t.csv data.min_documents=5 data.max_tokens=20 trainer.max_epochs=2 lora.rank=2".split()
SMALL += "hydra.run.dir=run tau=100 name=sweep".split()
EACH_STEP = [*SMALL, "trainer.log_every_n_steps=1", "data.batch_size=3"]


def wandb_records(folder: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Read an offline run's records: a log in LevelDB's format, in blocks of 32 KiB, after a header of 7 bytes."""
    (file,) = folder.glob("offline-run-*/run-*.wandb")
    data, at, record = file.read_bytes(), 7, b""
    while at < len(data):
        left = 2**15 - at % 2**15
        if left < 7:  # too few for a header: padding
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def wandb_figures(folder: Path) -> dict[str, list[float]]:
    """Read every figure of an offline run, by name, in the order logged."""
    figures: dict[str, list[float]] = {}
    for record in wandb_records(folder):
        for item in record.history.item:
            value = json.loads(item.value_json)
            if isinstance(value, float):
                figures.setdefault(item.key or "/".join(item.nested_key), []).append(value)
    return figures


def mlflow_figures(uri: str, what: str = "value") -> tuple[dict[str, list[float]], dict[str, str], str]:
    """Read figures (or their steps), parameters and status of the experiment's one run."""
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
    figures = {
        name: [getattr(m, what) for m in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
    }
    return figures, run.data.params, run.info.status


def tensorboard_figures(folder: Path, what: str = "value") -> dict[str, list[float]]:
    # The reader sorts by name; among files of one second the last part, a count, has to sort as a number.
    for file in folder.glob("events.*"):
        file.rename(file.with_suffix(f".{int(file.suffix[1:]):06d}"))
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [getattr(e, what) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize(("tracker", "names"), [("wandb", list(TASKS)), ("mlflow", SAFE), ("tensorboard", SAFE)])
def test_a_tracker_has_every_tasks_figures_and_the_config(command, tmp_path, tracker, names):
    table(tmp_path / "t.csv", TASKS | {"few": 6})
    code, _, err = command(*SMALL, f"logger={tracker}", "data.n_tasks=3")
    assert (code, err) == (0, "")
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    if tracker == "wandb":
        figures = wandb_figures(run / "wandb")
        records = list(wandb_records(run / "wandb"))
        config = {i.key: json.loads(i.value_json) for r in records for i in r.run.config.update}
        assert (config["tau"], config["lora"]["rank"]) == (100, 2)
        assert config["run"]["data_sha256"] == summary["data_sha256"]
        assert ("*", "trainer/global_step") in {(r.metric.glob_name, r.metric.step_metric) for r in records}
        assert figures["val/perplexity"]
    elif tracker == "mlflow":
        figures, parameters, status = mlflow_figures(f"sqlite:///{tmp_path}/mlflow.db")
        assert (status, parameters["tau"], float(parameters["run.lr"])) == ("FINISHED", "100.0", 1e-3)
        assert parameters["run.data_sha256"] == summary["data_sha256"]
        # The reason for dropping documents is a key; MLflow takes no parentheses in it.
        assert parameters["run.dropped.of 1 tasks not chosen data.n_tasks"] == "6"
    else:
        figures = tensorboard_figures(run / "tensorboard")
    per_task = pd.read_csv(run / "per_task.csv")
    assert list(per_task["task"]) == list(TASKS)
    for row, name in zip(per_task.itertuples(), names, strict=True):
        assert len(figures[f"val_perplexity/{name}"]) == 3  # two epochs, and the best one again
        assert figures[f"val_perplexity/{name}"][-1] == pytest.approx(row.val_perplexity, rel=1e-6)
        assert figures[f"test_perplexity/{name}"] == pytest.approx([row.test_perplexity], rel=1e-6)
        assert figures[f"distance/{name}"][-1] == pytest.approx(row.distance, rel=1e-6)
    metrics = pd.read_csv(run / "metrics.csv")
    assert figures["test/perplexity"] == pytest.approx(metrics["test/perplexity"].dropna().tolist(), rel=1e-6)
    assert not any(name.startswith("val_perplexity/") for name in metrics)


class Stop(Exception):
    """The machine goes down."""


@pytest.mark.parametrize(
    ("tracker", "where", "step", "resumed"),
    [
        ("mlflow", "training_step", 9, 6),
        ("tensorboard", "training_step", 9, 6),
        ("tensorboard", "test_step", 9, 12),
        ("tensorboard", "validation_step", 0, None),  # before the first checkpoint: starts again
    ],
)
def test_a_resumed_run_continues_in_its_tracker(command, tmp_path, monkeypatch, tracker, where, step, resumed):
    table(tmp_path / "t.csv", TASKS)
    call = getattr(TrainingModule, where)

    def stop(self, batch, batch_idx):
        if self.global_step >= step:
            raise Stop
        return call(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, where, stop)
        with pytest.raises(Stop):
            command(*EACH_STEP, f"logger={tracker}")
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert (torch.load(last, weights_only=True)["global_step"] if last.exists() else None) == resumed
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert tracker != "mlflow" or mlflow_figures(uri)[2] == "FAILED"
    assert command(*EACH_STEP, f"logger={tracker}")[0] == 0
    if tracker == "mlflow":
        steps, _, status = mlflow_figures(uri, "step")
        assert status == "FINISHED"
        steps = {name: sorted(set(found)) for name, found in steps.items()}  # its history only grows
    else:
        steps = tensorboard_figures(tmp_path / "run/tensorboard", "step")
    rows = pd.read_csv(tmp_path / "run/metrics.csv")
    expected = {name: rows["step"][rows[name].notna()].tolist() for name in rows if name not in ("epoch", "step")}
    expected = {name: found for name, found in expected.items() if found}
    assert expected["train/loss"] == list(range(12))  # 2 epochs of 6 steps
    assert expected["val/perplexity"] == [5, 11, 12]
    for split in ("val", "test"):
        expected |= {f"{split}_perplexity/{task}": expected[f"{split}/perplexity"] for task in SAFE}
    assert {name: steps[name] for name in expected} == expected


def test_a_tracker_that_cannot_be_used_is_reported_in_one_line(command, tmp_path, monkeypatch):
    table(tmp_path / "t.csv", TASKS)
    uri = "logger.tracking_uri=sqlite:///t.csv/all.db"
    one_line(command(*SMALL, "logger=mlflow", uri), f"bora: {uri}: MLflow cannot log there")
    for tracker, module in (("mlflow", "mlflow.exceptions"), ("tensorboard", "torch.utils.tensorboard")):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
        code, _, err = command(*SMALL, f"logger={tracker}")
        assert code == 2
        assert f"pip install {tracker}" in err


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_without_a_server_wandb_logs_offline_unless_mode_is_online(command, tmp_path, monkeypatch, mode):
    table(tmp_path / "t.csv", TASKS)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where no server listens
    monkeypatch.setattr(trackers, "WANDB_TIMEOUT_SECONDS", 2)
    monkeypatch.setattr(trackers, "wandb_mode", lambda mode: "online")
    code, out, err = command(*SMALL, f"logger.mode={mode}")
    if mode == "online":
        assert code == 2
        assert "bora: logger.mode=online, but W&B cannot be reached" in err
        assert not (tmp_path / "run/per_task.csv").exists()
    else:
        assert code == 0
        assert "W&B cannot be reached" in out
        assert "the run is logged offline" in out
        assert wandb_figures(tmp_path / "run/wandb")["test/perplexity"]


@pytest.mark.processes
def test_a_run_continues_when_wandb_dies(tmp_path):
    table(tmp_path / "t.csv", {"ann": 60, "bo": 60})
    others = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}  # this process's own
    process = subprocess.Popen(
        [sys.executable, "-m", "bora.commands.run", *EACH_STEP],
        cwd=tmp_path,
        env=others | {"WANDB_MODE": "offline"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run/metrics.csv"
    wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 3, process)
    services = psutil.Process(process.pid).children(recursive=True)
    assert services
    for service in services:
        service.kill()
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out.count("the run continues without it, and its files hold the same figures") == 1
    assert (tmp_path / "run/summary.json").is_file()


@pytest.mark.processes
def test_a_run_without_a_tracker_imports_none(tmp_path):
    table(tmp_path / "t.csv", TASKS)
    code = (
        "import sys; from bora.commands.run import main; sys.argv = ['bora', *sys.argv[1:]]; main(); "
        "print(sorted({'wandb', 'mlflow', 'tensorboard'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, *SMALL, "logger=none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]"), done.stderr
