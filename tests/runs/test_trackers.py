"""What the trackers are given, read back from their own files."""

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

import bora.train.trainer
from tests.conftest import table
from tests.faults.processes import wait_for
from tests.test_config import config, options

TASKS = {"Pia Kjærsgaard": 12, "pia-kjærsgaard": 12, "π": 12}
SAFE = ["Pia-Kjaersgaard", "pia-kjaersgaard-2", "task"]
SMALL = [
    "data=table", "data.path=t.csv", "data.min_documents=5", "data.max_tokens=20", "trainer.max_epochs=2",
    "lora.rank=2", "hydra.run.dir=run", "tau=100", "name=sweep",
]  # fmt: skip


def wandb_records(file: Path) -> Iterator[wandb_internal_pb2.Record]:
    """The records of a .wandb file: a log of LevelDB's format, in blocks of 32 KiB, after 7 bytes of its own."""
    data, at, record = file.read_bytes(), 7, b""
    while at < len(data):
        left = 2**15 - at % 2**15
        if left < 7:  # too few for a header: the block is filled up
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def wandb_figures(folder: Path) -> dict[str, list[float]]:
    """Every figure of an offline run, by name, in the order logged."""
    (file,) = folder.glob("offline-run-*/run-*.wandb")
    figures = {}
    for record in wandb_records(file):
        for item in record.history.item:
            value = json.loads(item.value_json)
            if isinstance(value, float):
                figures.setdefault(item.key or "/".join(item.nested_key), []).append(value)
    return figures


def mlflow_figures(uri: str, what: str = "value") -> tuple[dict[str, list[float]], dict[str, str], str]:
    """Figures (or their steps), parameters and status of the one run of the experiment."""
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
    figures = {
        name: [getattr(m, what) for m in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    return figures, run.data.params, run.info.status


def tensorboard_figures(folder: Path, what: str = "value") -> dict[str, list[float]]:
    # The reader goes by name; of files made in one second the last part of the name, a count, must sort as a number.
    for file in folder.glob("events.*"):
        file.rename(file.with_suffix(f".{int(file.suffix[1:]):06d}"))
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [getattr(e, what) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize(
    ("tracker", "names"), [("wandb", list(TASKS)), ("mlflow", SAFE), ("tensorboard", SAFE)]
)
def test_a_tracker_has_every_tasks_figures(command, tmp_path, monkeypatch, tracker, names):
    table(tmp_path / "t.csv", TASKS)
    code, _, err = command(*SMALL, f"logger={tracker}")
    assert code == 0, err
    assert err == ""
    if tracker == "wandb":
        figures = wandb_figures(tmp_path / "run/wandb")
    elif tracker == "mlflow":
        figures, parameters, status = mlflow_figures(f"sqlite:///{tmp_path}/mlflow.db")
        assert status == "FINISHED"
        assert parameters["tau"] == "100"
        assert float(parameters["run.lr"]) == 1e-3
        assert parameters["run.data_sha256"]
    else:
        figures = tensorboard_figures(tmp_path / "run/tensorboard")
    per_task = pd.read_csv(tmp_path / "run/per_task.csv")
    assert list(per_task["task"]) == list(TASKS)
    for row, name in zip(per_task.itertuples(), names, strict=True):
        assert len(figures[f"val_perplexity/{name}"]) == 3  # two epochs, and the best one once more
        assert figures[f"val_perplexity/{name}"][-1] == pytest.approx(row.val_perplexity, rel=1e-6)
        assert figures[f"test_perplexity/{name}"] == pytest.approx([row.test_perplexity], rel=1e-6)
        assert figures[f"distance/{name}"][-1] == pytest.approx(row.distance, rel=1e-6)
    metrics = pd.read_csv(tmp_path / "run/metrics.csv")
    assert figures["test/perplexity"] == pytest.approx(metrics["test/perplexity"].dropna().tolist(), rel=1e-6)
    assert not any(name.startswith("val_perplexity/") for name in metrics)


def test_mlflow_takes_any_reason_for_what_was_left_out(command, tmp_path):
    table(tmp_path / "t.csv", TASKS)
    code, _, err = command(*SMALL, "logger=mlflow", "data.n_tasks=2", "data.min_characters=12")
    assert (code, err) == (0, "")
    _, parameters, _ = mlflow_figures(f"sqlite:///{tmp_path}/mlflow.db")
    reasons = json.loads((tmp_path / "run/summary.json").read_text())["dropped"]
    assert any("(data.n_tasks)" in reason for reason in reasons)
    kept = {k.removeprefix("run.dropped."): v for k, v in parameters.items() if k.startswith("run.dropped.")}
    assert kept == {re.sub(r"[()]", "", reason): str(count) for reason, count in reasons.items()}


def test_only_so_many_tasks_have_lines(command, tmp_path):
    table(tmp_path / "t.csv", TASKS)
    code, out, _ = command(*SMALL, "logger=tensorboard", "logger.task_lines=2")
    assert code == 0
    assert "the first 2 of 3 tasks have lines in the dashboard (logger.task_lines)" in out
    figures = tensorboard_figures(tmp_path / "run/tensorboard")
    assert {name for name in figures if "perplexity/" in name and "_" in name} == {
        f"{split}_perplexity/{name}" for split in ("val", "test") for name in SAFE[:2]
    }
    assert len(pd.read_csv(tmp_path / "run/per_task.csv")) == 3


@pytest.fixture(autouse=True)
def no_tracking_uri(monkeypatch):
    """MLflow sets the variable itself; it must not reach the next test."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")


class Stop(Exception):
    """The machine goes down."""


@pytest.mark.parametrize("tracker", ["mlflow", "tensorboard"])
@pytest.mark.parametrize("where", ["training_step", "validation_step", "test_step"])
def test_a_resumed_run_goes_on_as_the_same_run_and_has_no_figure_twice(
    command, tmp_path, monkeypatch, tracker, where
):
    table(tmp_path / "t.csv", TASKS)
    arguments = [*SMALL, f"logger={tracker}", "trainer.log_every_n_steps=1", "data.batch_size=3"]

    def stop(self, batch, batch_idx):
        if self.global_step >= 9:  # in the second epoch
            raise Stop
        return step(self, batch, batch_idx)

    step = getattr(bora.train.trainer.TrainingModule, where)
    monkeypatch.setattr(bora.train.trainer.TrainingModule, where, stop)
    with pytest.raises(Stop):
        command(*arguments)
    monkeypatch.setattr(bora.train.trainer.TrainingModule, where, step)
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == (12 if where == "test_step" else 6)
    if tracker == "mlflow":
        assert mlflow_figures(f"sqlite:///{tmp_path}/mlflow.db")[2] == "FAILED"
    assert command(*arguments)[0] == 0
    if tracker == "mlflow":
        steps, _, status = mlflow_figures(f"sqlite:///{tmp_path}/mlflow.db", "step")
        assert status == "FINISHED"
    else:
        steps = tensorboard_figures(tmp_path / "run/tensorboard", "step")
    check_steps(steps, tmp_path / "run/metrics.csv")


def check_steps(steps: dict[str, list[int]], metrics: Path) -> None:
    """Each figure is there at the steps at which metrics.csv has it, once."""
    rows = pd.read_csv(metrics)
    expected = {
        name: rows["step"][rows[name].notna()].tolist() for name in rows if name not in ("epoch", "step")
    }
    expected = {name: found for name, found in expected.items() if found}
    assert expected["train/loss"] == list(range(12))  # 2 epochs of 6 steps
    assert expected["val/perplexity"] == [5, 11, 12]
    for split in ("val", "test"):
        expected |= {f"{split}_perplexity/{task}": expected[f"{split}/perplexity"] for task in SAFE}
    assert {name: steps[name] for name in expected} == expected


def test_tensorboard_has_nothing_twice_of_a_run_that_is_begun_anew(command, tmp_path, monkeypatch):
    table(tmp_path / "t.csv", TASKS)
    arguments = [*SMALL, "logger=tensorboard", "trainer.log_every_n_steps=1", "data.batch_size=3"]
    with monkeypatch.context() as patch:

        def stop(self, batch, batch_idx):
            raise Stop

        patch.setattr(bora.train.trainer.TrainingModule, "validation_step", stop)
        with pytest.raises(Stop):
            command(*arguments)
    assert not (tmp_path / "run/checkpoints/last.ckpt").exists()
    assert command(*arguments)[0] == 0
    check_steps(tensorboard_figures(tmp_path / "run/tensorboard", "step"), tmp_path / "run/metrics.csv")


def test_a_tracker_that_cannot_be_used_is_told(command, tmp_path, monkeypatch):
    table(tmp_path / "t.csv", TASKS)
    code, _, err = command(*SMALL, "logger=mlflow", "logger.tracking_uri=sqlite:///t.csv/all.db")
    assert code == 2
    assert err.startswith("bora: logger.tracking_uri=sqlite:///t.csv/all.db: MLflow cannot log there")
    assert err.count("\n") == 1
    code, _, err = command(*SMALL, "logger.kind=clearml")
    assert code == 2
    assert "logger.kind=clearml must be one of none, wandb, mlflow, tensorboard" in err
    for tracker, module in (("mlflow", "mlflow.exceptions"), ("tensorboard", "torch.utils.tensorboard")):
        monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
        code, _, err = command(*SMALL, f"logger={tracker}")
        assert code == 2
        assert f"pip install 'bora[{tracker}]'" in err


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_wandb_out_of_reach_is_told(command, tmp_path, monkeypatch, mode):
    table(tmp_path / "t.csv", TASKS)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr(bora.runs.trackers, "WAIT", 2)
    monkeypatch.setattr(bora.runs.trackers, "wandb_mode", lambda mode: "online")
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


def test_wandb_dying_does_not_end_the_run(tmp_path):
    table(tmp_path / "t.csv", {"ann": 60, "bo": 60})
    others = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}  # this process's own
    environment = others | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "bora.commands.run",
        *SMALL,
        "trainer.log_every_n_steps=1",
        "data.batch_size=2",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run/metrics.csv"
    wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 3, process)
    services = psutil.Process(process.pid).children(recursive=True)
    assert services
    for service in services:
        service.kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("the run goes on without it; its files have everything") == 1
    assert err == ""
    assert (tmp_path / "run/summary.json").is_file()


def test_every_logger_config_is_known():
    kinds = {config(f"logger={option}").logger.kind for option in options("logger")}
    assert kinds == set(bora.runs.trackers.TRACKERS) == {"none", "wandb", "mlflow", "tensorboard"}
    assert all(issubclass(kind, Logger) for kind in (WandbLogger, MLFlowLogger, TensorBoardLogger))
