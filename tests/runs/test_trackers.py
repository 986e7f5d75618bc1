"""The trackers' own files hold a run's figures and config."""

import io
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock
from xml.etree import ElementTree

import pandas as pd
import psutil
import pytest
import torch
import wandb
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from bora.lib.names import safe_names
from bora.train.module import TrainingModule
from bora.use.restore import restore
from tests.conftest import one_line, table
from tests.faults.processes import wait_for

TASKS = {"Pia Kjærsgaard": 12, "pia-kjærsgaard": 12, "π": 12}
SAFE = [*safe_names(TASKS).values()]
SMALL = "data=table data.path=t.csv data.min_documents=5 data.max_tokens=20 trainer.max_epochs=2 lora.rank=2".split()
SMALL += "hydra.run.dir=run tau=100 name=sweep logger.samples=0".split()
EACH_STEP = [*SMALL, "trainer.log_every_n_steps=1", "data.batch_size=3"]


def wandb_records(folder: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Read the records of offline runs: logs in LevelDB's format, in blocks of 32 KiB after a header of 7 bytes."""
    wandb.teardown()  # its service may still be writing
    for file in sorted(folder.glob("offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime):
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


class Shown(NamedTuple):
    """What a tracker's files hold about a run.

    Attributes:
        figures: each figure's values by name, in the order logged.
        at: their steps; in W&B their places on the figure's own axis.
        last: each figure's value that a list of runs shows, by name.
        tables: by name.
    """

    figures: dict[str, list[float]]
    at: dict[str, list[float]]
    last: dict[str, float]
    tables: dict[str, pd.DataFrame]


def from_wandb(folder: Path) -> Shown:
    shown, axes, tables = Shown({}, {}, {}, {}), {}, {}

    def items(found) -> dict[str, object]:
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in found}

    for record in wandb_records(folder):
        if record.metric.step_metric:
            axes[(record.metric.name or record.metric.glob_name).removesuffix("*")] = record.metric.step_metric
        row = items(record.history.item)
        for name, value in row.items():
            axis = next((axis for prefix, axis in axes.items() if name.startswith(prefix)), None)
            if axis is not None:
                shown.figures.setdefault(name, []).append(value)
                shown.at.setdefault(name, []).append(row[axis])
        shown.last.update(items(record.summary.update))
    for file in sorted(folder.glob("offline-run-*/files/media/table/*.json"), key=lambda file: file.stat().st_mtime):
        tables[re.sub(r"_\d+_\w+\.table$", "", file.stem)] = pd.DataFrame(**json.loads(file.read_text()))
    return shown._replace(tables=tables)


def from_mlflow(folder: Path) -> Shown:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    figures, at = ({n: [getattr(m, what) for m in found] for n, found in history.items()} for what in ("value", "step"))
    artifacts = folder / "mlruns" / run.info.experiment_id / run.info.run_id / "artifacts"
    tables = {file.stem: pd.read_json(file, orient="split") for file in artifacts.glob("*.json")}
    return Shown(figures, at, run.data.metrics, tables)


def from_tensorboard(folder: Path) -> Shown:
    # The reader sorts by name; among files of one second the last part, a count, has to sort as a number.
    for file in folder.glob("events.*"):
        file.rename(file.with_suffix(f".{int(file.suffix[1:]):06d}"))
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()
    figures, at = ({t: [getattr(e, w) for e in events.Scalars(t)] for t in tags["scalars"]} for w in ("value", "step"))
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    tables = {tag.partition("/")[0]: from_html(text) for tag, text in texts.items()}
    return Shown(figures, at, {name: values[-1] for name, values in figures.items()}, tables)


def from_html(text: str) -> pd.DataFrame:
    rows = ElementTree.fromstring(text.replace("&nbsp;", " ")).iter("tr")
    head, *cells = ([cell.text for cell in row] for row in rows)
    return pd.read_csv(io.StringIO(pd.DataFrame(cells, columns=head).to_csv(index=False)))


def read(tracker: str, folder: Path) -> Shown:
    """Read the files of the run in `folder`/run."""
    if tracker == "mlflow":
        return from_mlflow(folder)
    return {"wandb": from_wandb, "tensorboard": from_tensorboard}[tracker](folder / "run" / tracker)


@pytest.mark.parametrize(("tracker", "names"), [("wandb", list(TASKS)), ("mlflow", SAFE), ("tensorboard", SAFE)])
def test_a_tracker_has_every_tasks_figures_and_texts(command, tmp_path, tracker, names):
    table(tmp_path / "t.csv", TASKS | {"few": 6})
    words = [f"logger={tracker}", "data.n_tasks=3", "logger.task_lines=3", "logger.samples=2"]
    words.append("trainer.log_every_n_steps=1")
    code, _, err = command(*SMALL, *words)
    assert (code, err) == (0, "")
    run, shown = tmp_path / "run", read(tracker, tmp_path)
    per_task, metrics = pd.read_csv(run / "per_task.csv"), pd.read_csv(run / "metrics.csv")
    assert list(per_task["task"]) == list(TASKS)
    for row, name in zip(per_task.itertuples(), names, strict=True):
        # Two epochs, and except in W&B's charts the best one again.
        assert len(shown.figures[f"val_perplexity/{name}"]) == (2 if tracker == "wandb" else 3)
        for figure in ("val_perplexity", "test_perplexity", "distance"):
            assert shown.last[f"{figure}/{name}"] == pytest.approx(getattr(row, figure), rel=1e-6)
    for figure in ("val/perplexity", "test/perplexity", "lr", "grad_norm/tasks", "grad_norm/mean"):
        assert shown.last[figure] == pytest.approx(metrics[figure].dropna().iloc[-1], rel=1e-6)
    assert not any(name.startswith("val_perplexity/") for name in metrics)
    pd.testing.assert_frame_equal(shown.tables["tasks"], per_task, check_dtype=False, rtol=1e-4)
    samples = shown.tables["samples"]
    assert samples["task"].tolist() == [*TASKS][:2] * 2
    assert samples["prompt"].nunique() == 2


def spoil_later_epochs(module) -> None:
    """Change the parameters after the first epoch, so that it is the best."""
    for parameter in module.model.adapters.parameters() if module.current_epoch else ():
        parameter.data += 1


@pytest.mark.parametrize(("tau", "log10"), [("100", 2), ("0", -2), ("inf", 8)])
def test_wandbs_run_has_its_config_tags_axes_and_one_chart(command, tmp_path, monkeypatch, tau, log10):
    table(tmp_path / "t.csv", TASKS)
    monkeypatch.setenv("WANDB_TAGS", "thesis")
    words = ["trainer.log_every_n_steps=1", "trainer.max_epochs=3", "logger.artifact=true"]
    monkeypatch.setattr(TrainingModule, "on_train_epoch_start", spoil_later_epochs)
    assert command(*SMALL, *words, f"tau={tau}")[0] == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    records = list(wandb_records(tmp_path / "run/wandb"))
    config = {i.key: json.loads(i.value_json) for r in records for i in r.run.config.update}
    assert (config["log10_tau"], config["lora"]["rank"]) == (log10, 2)
    assert config["run"]["data_sha256"] == summary["data_sha256"]
    (run,) = (r.run for r in records if r.run.run_id)
    assert (run.job_type, run.run_group) == ("train", "sweep")
    assert list(run.tags) == [summary["parameterization"], "opt_mini", "table", f"tau={tau}", "thesis"]
    shown, metrics = from_wandb(tmp_path / "run/wandb"), pd.read_csv(tmp_path / "run/metrics.csv")
    assert shown.at["train/loss"] == metrics["step"][metrics["train/loss"].notna()].tolist()
    assert shown.at["val/perplexity"] == [1, 2, 3]
    assert shown.last["val/perplexity"] == pytest.approx(shown.figures["val/perplexity"][0])
    assert (shown.last["best/epoch"], summary["best_epoch"]) == (1, 1)
    assert not any("/" in name and name.split("/")[1] in TASKS for name in shown.figures)  # no line for a single task
    chart = shown.tables["validation perplexity by task_table"].pivot(index="step", columns="lineKey", values="lineVal")
    assert (list(chart.index), set(chart)) == ([1, 2, 3], set(TASKS))
    assert "samples" not in shown.tables  # logger.samples=0
    (files,) = ({f.path for f in r.artifact.manifest.contents} for r in records if r.artifact.type == "model")
    assert {"checkpoints/best.ckpt", "config.yaml", "summary.json", "per_task.csv"} < files


def test_mlflows_run_has_its_config_and_files(command, tmp_path):
    table(tmp_path / "t.csv", TASKS | {"few": 6})
    assert command(*SMALL, "logger=mlflow", "logger.artifact=true", "data.n_tasks=3")[0] == 0
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("sweep").experiment_id])
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    parameters = run.data.params
    assert (run.info.status, parameters["log10_tau"], float(parameters["run.lr"])) == ("FINISHED", "2.0", 1e-3)
    assert parameters["run.data_sha256"] == summary["data_sha256"]
    # The reason for dropping documents is a key, in which MLflow allows no parentheses.
    assert parameters["run.dropped.of 1 tasks not chosen data.n_tasks"] == "6"
    (kept,) = (tmp_path / "mlruns").glob("*/*/artifacts/run")
    assert restore(kept).summary == restore(tmp_path / "run").summary


class Stop(Exception):
    """The machine goes down."""


@pytest.mark.parametrize(
    ("tracker", "where", "step", "resumed"),
    [
        ("wandb", "training_step", 9, 6),
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

    words = [*EACH_STEP, f"logger={tracker}", "logger.task_lines=3"]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, where, stop)
        with pytest.raises(Stop):
            command(*words)
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert (torch.load(last, weights_only=True)["global_step"] if last.exists() else None) == resumed
    assert command(*words)[0] == 0
    at = {name: sorted(set(found)) for name, found in read(tracker, tmp_path).at.items()}  # a history may repeat steps
    rows = pd.read_csv(tmp_path / "run/metrics.csv")
    expected = {name: rows["step"][rows[name].notna()].tolist() for name in rows if name not in ("epoch", "step")}
    expected = {name: found for name, found in expected.items() if found}
    assert expected["train/loss"] == list(range(12))  # two epochs of six steps
    assert expected["val/perplexity"] == [5, 11, 12]
    names = SAFE
    if tracker == "wandb":
        names = list(TASKS)
        expected = {"train/loss": expected["train/loss"], "val/perplexity": [1, 2]}
        assert len({r.run.run_id for r in wandb_records(tmp_path / "run/wandb") if r.run.run_id}) == 1
        chart = read(tracker, tmp_path).tables["validation perplexity by task_table"]
        assert chart["step"].tolist() == [1, 2] * len(TASKS)
    for split in ("val", "test"):
        if f"{split}/perplexity" in expected:
            expected |= {f"{split}_perplexity/{task}": expected[f"{split}/perplexity"] for task in names}
    assert {name: at[name] for name in expected} == expected


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
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # no server listens there
    monkeypatch.setattr("bora.runs.trackers.wandb.WANDB_TIMEOUT_SECONDS", 2)
    monkeypatch.setattr("bora.runs.trackers.wandb.wandb_mode", lambda mode: "online")
    code, out, err = command(*SMALL, f"logger.mode={mode}")
    if mode == "online":
        assert code == 2
        assert "bora: logger.mode=online, but W&B cannot be reached" in err
        assert not (tmp_path / "run/per_task.csv").exists()
    else:
        assert code == 0
        assert "W&B cannot be reached" in out
        assert "the run is logged offline" in out
        assert from_wandb(tmp_path / "run/wandb").last["test/perplexity"]


@pytest.mark.parametrize(
    ("project", "words"),
    [
        ("team/bora", "give logger.entity=team logger.project=bora"),
        ("a:b", "W&B refuses logger.project=a:b"),
        ("good", "entity nobody not found"),
    ],
)
def test_a_setting_that_wandb_refuses_is_reported_in_one_line(command, tmp_path, monkeypatch, project, words):
    table(tmp_path / "t.csv", TASKS)
    if project == "good":  # in the words of the server's answer
        error = wandb.errors.CommError("entity nobody not found during upsertBucket")
        monkeypatch.setattr(wandb, "init", Mock(side_effect=error))
    one_line(command(*SMALL, f"logger.project={project}", "logger.entity=nobody"), words)
    assert not (tmp_path / "run").exists()


@pytest.mark.processes
def test_the_environments_run_id_is_used_for_a_single_run_and_not_for_a_sweep(tmp_path):
    table(tmp_path / "t.csv", TASKS)

    def ids(*words: str, **more: str) -> list[str]:
        others = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}  # this process's own
        environment = others | more | {"WANDB_MODE": "offline", "WANDB_RUN_ID": "mine"}
        command = [sys.executable, "-m", "bora.commands.run", *SMALL, "trainer.max_epochs=1", *words]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
        files = [*tmp_path.glob("run/wandb/off*/*.wandb"), *tmp_path.glob("multirun/*/*/wandb/off*/*.wandb")]
        return [file.stem for file in files]

    assert ids() == ["run-mine"]
    found = ids("-m", "tau=10,inf", WANDB_SWEEP_ID="theirs", WANDB_RESUME="must")
    assert len(set(found)) == 3


@pytest.mark.processes
def test_the_callers_own_wandb_run_stays_open_and_separate(command, tmp_path, monkeypatch):
    table(tmp_path / "t.csv", TASKS)
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    (tmp_path / "own").mkdir()
    own = wandb.init(id="mine", mode="offline", dir=tmp_path / "own", settings=wandb.Settings(silent=True))
    assert command(*SMALL, "trainer.max_epochs=1")[0] == 0
    assert wandb.run is own
    own.log({"mine": 1})
    own.finish()
    of_own, of_run = ({r.run.run_id for r in wandb_records(tmp_path / f / "wandb")} - {""} for f in ("own", "run"))
    assert of_own == {"mine"}
    assert len(of_run - of_own) == len(of_run) == 1


def test_a_run_continues_when_wandb_dies(tmp_path):
    table(tmp_path / "t.csv", {"ann": 60, "bo": 60})
    others = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}  # this process's own
    words, pipe = [sys.executable, "-m", "bora.commands.run", *EACH_STEP], subprocess.PIPE
    env = others | {"WANDB_MODE": "offline"}
    process = subprocess.Popen(words, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, text=True)
    metrics = tmp_path / "run/metrics.csv"
    wait_for(lambda: metrics.is_file() and len(metrics.read_text().splitlines()) > 3, process)
    children = psutil.Process(process.pid).children(recursive=True)
    services = [child for child in children if "wandb" in " ".join(child.cmdline())]  # Python has helper processes, too
    assert services
    for service in services:
        service.kill()
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out.count("the run continues without it, and its files hold the same figures") == 1
    assert "wandb sync" not in out
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
