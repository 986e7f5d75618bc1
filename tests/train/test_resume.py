"""A run or a sweep that is stopped and started again ends as one that was not; failures are told."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import bora.train.trainer
from bora.runs.directory import RunDirectory
from bora.train.module import TrainingModule
from tests.conftest import same_files, table

SMALL = [
    "data.modules=[pickle,ssl,argparse]",
    "data.documents_per_task=12",
    "data.min_documents=5",
    "data.max_tokens=20",
    "data.batch_size=6",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=2",
]


class Stop(Exception):
    """Stands for whatever ends a process in the middle of a run."""


def stop_at(monkeypatch, what: str, count: int):
    """Let the count-th call of TrainingModule.`what` fail; undone when called."""
    original, calls = getattr(TrainingModule, what), []

    def fail(self, *args):
        calls.append(1)
        if len(calls) == count:
            raise Stop("the machine went away")
        return original(self, *args)

    monkeypatch.setattr(TrainingModule, what, fail)
    return lambda: monkeypatch.setattr(TrainingModule, what, original)


@pytest.mark.parametrize(
    ("what", "count"),
    [("training_step", 2), ("training_step", 5), ("validation_step", 2), ("test_step", 1)],
    ids=["in the first epoch", "in the second epoch", "while validating", "while testing"],
)
@pytest.mark.parametrize("tau", ["0", "10"])
def test_a_stopped_run_goes_on_and_ends_the_same(command, tmp_path, monkeypatch, what, count, tau):
    arguments = [f"tau={tau}", "logger=none", *SMALL]
    assert command(*arguments, "hydra.run.dir=whole")[0] == 0
    mend = stop_at(monkeypatch, what, count)
    with pytest.raises(Stop):
        command(*arguments, "hydra.run.dir=stopped")
    assert not (tmp_path / "stopped/summary.json").exists()
    mend()
    code, out, _ = command(*arguments, "hydra.run.dir=stopped")
    assert code == 0
    assert ("going on from" in out) == (what != "training_step" or count > 3)
    same_files(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_that_stopped_early_trains_no_further_epoch_when_resumed(command, tmp_path, monkeypatch):
    arguments = ["tau=0", "optim.lr=0.01", "optim.patience=1", "logger=none", *SMALL, "trainer.max_epochs=9"]
    assert command(*arguments, "hydra.run.dir=whole")[0] == 0
    mend = stop_at(monkeypatch, "test_step", 1)
    with pytest.raises(Stop):
        command(*arguments, "hydra.run.dir=stopped")
    mend()
    assert command(*arguments, "hydra.run.dir=stopped")[0] == 0
    summary = json.loads((tmp_path / "whole/summary.json").read_text())
    assert summary["epochs"] == summary["best_epoch"] + 1 < 9
    same_files(tmp_path / "whole", tmp_path / "stopped")


def test_not_even_where_an_epoch_that_it_had_to_do_was_better(command, tmp_path, monkeypatch):
    arguments = ["tau=0", "optim.lr=0.01", "optim.patience=1", "logger=none", *SMALL, "trainer.max_epochs=9"]
    arguments.append("+trainer.min_epochs=4")  # the third is worse, the fourth the best
    assert command(*arguments, "hydra.run.dir=whole")[0] == 0
    summary = json.loads((tmp_path / "whole/summary.json").read_text())
    assert summary["epochs"] == summary["best_epoch"] == 4
    mend = stop_at(monkeypatch, "test_step", 1)
    with pytest.raises(Stop):
        command(*arguments, "hydra.run.dir=stopped")
    mend()
    assert command(*arguments, "hydra.run.dir=stopped")[0] == 0
    same_files(tmp_path / "whole", tmp_path / "stopped")


def test_a_stopped_run_goes_on_in_a_folder_that_was_moved(command, tmp_path, monkeypatch):
    arguments = ["logger=none", *SMALL]
    assert command(*arguments, "hydra.run.dir=whole")[0] == 0
    mend = stop_at(monkeypatch, "training_step", 7)
    with pytest.raises(Stop):
        command(*arguments, "hydra.run.dir=stopped")
    mend()
    (tmp_path / "stopped").rename(tmp_path / "moved")
    assert command(*arguments, "hydra.run.dir=moved")[0] == 0
    same_files(tmp_path / "whole", tmp_path / "moved")
    assert not (tmp_path / "stopped").exists()


@pytest.mark.parametrize("count", [2, 4, 6])
@pytest.mark.parametrize(
    "more", [["tau=10"], ["tau=0"], ["tau=inf"], ["tau=10", "prior.estimator=dense"]], ids=" ".join
)
def test_a_run_goes_on_within_an_epoch(command, tmp_path, monkeypatch, more, count):
    arguments = [
        *more,
        "logger=none",
        *SMALL,
        "data.batch_size=4",
        "checkpoint_minutes=0",
        "trainer.log_every_n_steps=1",
    ]
    assert command(*arguments, "hydra.run.dir=whole")[0] == 0
    mend = stop_at(monkeypatch, "training_step", count)
    with pytest.raises(Stop):
        command(*arguments, "hydra.run.dir=stopped")
    mend()
    last = torch.load(tmp_path / "stopped/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == count - 1
    code, out, _ = command(*arguments, "hydra.run.dir=stopped")
    assert code == 0
    assert "going on from" in out
    same_files(tmp_path / "whole", tmp_path / "stopped")


def test_within_an_epoch_it_goes_on_between_two_steps_of_accumulated_batches(command, tmp_path, monkeypatch):
    arguments = [
        "logger=none",
        *SMALL,
        "data.batch_size=2",
        "trainer.accumulate_grad_batches=3",
        "checkpoint_minutes=0",
        "trainer.log_every_n_steps=1",
    ]
    assert command(*arguments, "hydra.run.dir=whole")[0] == 0
    mend = stop_at(monkeypatch, "training_step", 6)
    with pytest.raises(Stop):
        command(*arguments, "hydra.run.dir=stopped")
    mend()
    last = torch.load(tmp_path / "stopped/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 1
    assert command(*arguments, "hydra.run.dir=stopped")[0] == 0
    same_files(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize(
    ("more", "last"),
    [
        (["trainer.max_steps=2"], 2),
        (["trainer.max_steps=4"], 4),
        (["trainer.max_steps=5"], 5),
        (["trainer.max_steps=6"], 6),
        (["trainer.max_steps=5", "data.batch_size=2", "trainer.accumulate_grad_batches=3"], 14),
    ],
    ids=["in the first epoch", "from an epoch's end", "in the second epoch", "at its end", "of accumulated batches"],
)
@pytest.mark.parametrize("what", ["training_step", "validation_step", "test_step"])
def test_a_run_of_so_many_steps_goes_on(command, tmp_path, monkeypatch, more, last, what):
    arguments = ["logger=none", *SMALL, "checkpoint_minutes=0", "trainer.log_every_n_steps=1", *more]
    assert command(*arguments, "hydra.run.dir=whole")[0] == 0
    mend = stop_at(monkeypatch, what, last if what == "training_step" else 1)
    with pytest.raises(Stop):
        command(*arguments, "hydra.run.dir=stopped")
    mend()
    assert command(*arguments, "hydra.run.dir=stopped")[0] == 0
    same_files(tmp_path / "whole", tmp_path / "stopped")
    # Its last steps, after which nothing was validated, are no epoch without a better one.
    state = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)["callbacks"]
    assert {s["wait_count"] for s in state.values() if "wait_count" in s} == {0}


def test_a_run_that_is_asked_to_stop_in_its_last_step_ends_training_first(command, tmp_path, monkeypatch):
    arguments = ["logger=none", *SMALL, "trainer.max_steps=5"]
    assert command(*arguments, "hydra.run.dir=whole")[0] == 0
    step = TrainingModule.training_step

    def asked(self, batch, batch_idx):
        if self.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", asked)
    assert command(*arguments, "hydra.run.dir=stopped")[0] == 143
    assert torch.load(tmp_path / "stopped/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5
    assert command(*arguments, "hydra.run.dir=stopped")[0] == 0
    same_files(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("count", [3, 4, 5])
def test_no_validation_in_the_middle_of_an_epoch_is_left_out(command, tmp_path, monkeypatch, count):
    arguments = ["logger=none", *SMALL, "data.batch_size=3", "+trainer.val_check_interval=0.5", "checkpoint_minutes=0"]
    assert command(*arguments, "hydra.run.dir=whole")[0] == 0
    summary, rows = RunDirectory(tmp_path / "whole").summary(), pd.read_csv(tmp_path / "whole/metrics.csv")
    figures = rows.dropna(subset="val/nll").iloc[:-1]  # two an epoch; the last are the chosen epoch's again
    assert list(figures["epoch"] + 1) == sorted([*range(1, summary["epochs"] + 1)] * 2)
    assert summary["best_epoch"] == figures["epoch"][figures["val/nll"].idxmin()] + 1
    mend = stop_at(monkeypatch, "training_step", count)  # validation follows the third
    with pytest.raises(Stop):
        command(*arguments, "hydra.run.dir=stopped")
    mend()
    last = torch.load(tmp_path / "stopped/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == {3: 2, 4: 2, 5: 4}[count]
    assert command(*arguments, "hydra.run.dir=stopped")[0] == 0
    same_files(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda rows: None, "is missing, and the interrupted run needs it"),
        (lambda rows: rows[:-20], " at the last checkpoint"),
        (lambda rows: rows.replace(b"0,", b"5,", 1), "was changed since the last checkpoint"),
    ],
    ids=["gone", "cut", "changed"],
)
def test_rows_that_are_lost_are_told(command, tmp_path, monkeypatch, damage, told):
    arguments = ["logger=none", *SMALL, "hydra.run.dir=a"]
    mend = stop_at(monkeypatch, "test_step", 1)
    with pytest.raises(Stop):
        command(*arguments)
    mend()
    metrics = tmp_path / "a/metrics.csv"
    saved = torch.load(tmp_path / "a/checkpoints/last.ckpt", weights_only=True)["metrics_bytes"]
    rows = damage(metrics.read_bytes()[:saved])
    metrics.unlink()
    if rows is not None:
        metrics.write_bytes(rows)
    code, _, err = command(*arguments)
    assert code == 2
    line = err.splitlines()[-1]
    assert line.startswith(f"bora: {metrics} ")
    assert told in line
    assert line.endswith("; restore the file, or restart with resume=never")
    assert not metrics.exists() if rows is None else metrics.read_bytes() == rows
    assert command(*arguments, "resume=never")[0] == 0
    assert command("logger=none", *SMALL, "hydra.run.dir=b")[0] == 0
    same_files(tmp_path / "a", tmp_path / "b")


def test_an_interrupted_run_with_other_settings_is_refused_or_begun_anew(command, tmp_path, monkeypatch):
    mend = stop_at(monkeypatch, "training_step", 5)
    with pytest.raises(Stop):
        command("logger=none", "lora.rank=3", *SMALL, "hydra.run.dir=a")
    mend()
    code, _, err = command("logger=none", *SMALL, "hydra.run.dir=a")
    assert code == 2
    assert "holds an interrupted run with other settings (lora.rank); give those, choose another folder" in err
    code, out, _ = command("logger=none", *SMALL, "hydra.run.dir=a", "resume=never")
    assert code == 0
    assert "resume=never: what the interrupted run left here is removed" in out
    assert command("logger=none", *SMALL, "hydra.run.dir=b")[0] == 0
    same_files(tmp_path / "a", tmp_path / "b")


def swap_two_words(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = "Ġthe", "Ġa"
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))


def change_the_activation(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"activation_function": "gelu"}))


def change_one_weight(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.decoder.layers.1.fc1.weight"][7, 5] += 1e-3
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def test_another_corpus_or_backbone_under_the_same_settings_is_refused(command, tmp_path, monkeypatch):
    path = table(tmp_path / "t.csv", {"a": 24, "b": 30})
    shutil.copytree(Path(bora.__file__).parent / "assets/opt_mini", tmp_path / "model")
    arguments = [
        "logger=none",
        "data=table",
        "data.path=t.csv",
        "data.min_documents=5",
        "data.max_tokens=20",
        "trainer.max_epochs=3",
        "model=hub",
        "model.path=./model",
        "hydra.run.dir=a",
    ]
    mend = stop_at(monkeypatch, "training_step", 3)
    with pytest.raises(Stop):
        command(*arguments)
    mend()
    whole_text = path.read_text()
    path.write_text(whole_text.replace("vote", "veto"))
    code, _, err = command(*arguments)
    assert code == 2
    assert "checkpoints/last.ckpt is of a run with another corpus or tokenizer; give what that run had" in err
    path.write_text(whole_text)
    shutil.move(tmp_path / "model", tmp_path / "kept")
    for change, what in (
        (swap_two_words, "corpus or tokenizer"),
        (change_the_activation, "backbone"),
        (change_one_weight, "backbone"),
    ):
        shutil.copytree(tmp_path / "kept", tmp_path / "model", dirs_exist_ok=True)
        change(tmp_path / "model")
        code, _, err = command(*arguments)
        assert code == 2
        assert f"is of a run with another {what};" in err
    assert not (tmp_path / "a/summary.json").exists()


@pytest.mark.parametrize(
    ("other", "files"), [("seed=1", ["best.ckpt"]), ("+trainer.gradient_clip_val=9", ["last.ckpt", "../metrics.csv"])]
)
def test_checkpoints_of_a_run_with_other_settings_are_refused(command, tmp_path, monkeypatch, other, files):
    arguments = ["tau=10", "logger=none", *SMALL]
    for more, folder in (([], "a"), ([other], "b")):
        mend = stop_at(monkeypatch, "test_step", 1)
        with pytest.raises(Stop):
            command(*arguments, *more, f"hydra.run.dir={folder}")
        mend()
    for file in files:
        shutil.copy(tmp_path / "b/checkpoints" / file, tmp_path / "a/checkpoints" / file)
    code, _, err = command(*arguments, "hydra.run.dir=a")
    assert code == 2
    assert f"checkpoints/{files[0]} is of a run with another {other.lstrip('+').split('=')[0]};" in err
    assert not (tmp_path / "a/summary.json").exists()


def test_a_best_checkpoint_that_is_not_the_best_is_refused(command, tmp_path, monkeypatch):
    arguments = ["tau=10", "optim.lr=0.01", "logger=none", *SMALL]
    best, kept = tmp_path / "a/checkpoints/best.ckpt", []
    for what, count in (("training_step", 7), ("test_step", 1)):  # after the first epoch, and after the last
        mend = stop_at(monkeypatch, what, count)
        with pytest.raises(Stop):
            command(*arguments, "hydra.run.dir=a")
        mend()
        kept.append(best.read_bytes())
    best.write_bytes(kept[0])
    code, _, err = command(*arguments, "hydra.run.dir=a")
    assert code == 2
    assert "checkpoints/best.ckpt is not of this run's best epoch: its validation NLL is" in err


def test_a_key_of_a_later_version_does_not_undo_what_is_finished(command, tmp_path):
    assert command("logger=none", *SMALL, "hydra.run.dir=a")[0] == 0
    config = tmp_path / "a/config.yaml"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if "prepend_bos" not in line))
    code, out, _ = command("logger=none", *SMALL, "hydra.run.dir=a")
    assert code == 0
    assert "finished already" in out
    code, _, err = command("logger=none", *SMALL, "hydra.run.dir=a", "data.prepend_bos=false")
    assert code == 2
    assert "other settings (data.prepend_bos)" in err


def test_a_resumed_run_is_one_run_in_wandb(command, tmp_path, monkeypatch):
    mend = stop_at(monkeypatch, "training_step", 5)
    with pytest.raises(Stop):
        command(*SMALL, "hydra.run.dir=a")
    mend()
    time.sleep(1.1)  # W&B names its folders by the second
    assert command(*SMALL, "hydra.run.dir=a")[0] == 0
    parts = [f.name.rsplit("-", 1)[1] for f in (tmp_path / "a/wandb").glob("offline-run-*")]
    assert len(parts) == 2
    assert len(set(parts)) == 1


def test_a_failed_job_does_not_stop_the_others_and_is_told_at_the_end(command, tmp_path, monkeypatch):
    arguments = ["-m", "tau=5,10,20", "name=s", "logger=none", *SMALL, "trainer.max_epochs=1"]
    build = bora.train.trainer.build_fitter

    def broken(cfg, *rest):
        if cfg.tau == 10:
            raise RuntimeError("out of luck")
        return build(cfg, *rest)

    monkeypatch.setattr("bora.train.run.build_fitter", broken)
    code, out, err = command(*arguments)
    assert code == 1
    assert err.splitlines()[-2:] == [
        "bora: 1 of the sweep's jobs failed:",
        "bora: tau=10,seed=0: RuntimeError: out of luck",
    ]
    assert "Traceback" in out + err  # a defect is told with its trace
    tail = out[out.index("τ → perplexity") :]
    assert [line.split("│")[1].strip() for line in tail.splitlines() if line.startswith("│")] == ["5", "20"]
    monkeypatch.setattr("bora.train.run.build_fitter", build)
    stamp = (tmp_path / "multirun/s/tau=5,seed=0/summary.json").stat().st_mtime_ns
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    assert stamp == (tmp_path / "multirun/s/tau=5,seed=0/summary.json").stat().st_mtime_ns
    assert (tmp_path / "multirun/s/tau=10,seed=0/summary.json").exists()


def test_bad_input_in_one_job_of_a_sweep_is_exit_code_2(command):
    code, out, err = command("-m", "tau=-1,5", "name=s", "logger=none", *SMALL, "trainer.max_steps=1")
    assert code == 2
    assert err.splitlines()[-1] == "bora: tau=-1,seed=0: tau=-1 must be a number from 0"
    assert "Traceback" not in out + err
    code, _, err = command("-m", "tau=5", "name=s", "logger=none", *SMALL, "trainer.max_steps=1")
    assert (code, err) == (0, "")  # what failed before and is not asked for now is not told again


def test_a_killed_sweep_ends_with_the_tables_of_one_that_was_not(command, tmp_path):
    arguments = ["-m", "tau=0,10,inf", "logger=none", *SMALL]
    assert command(*arguments, "name=whole")[0] == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "bora.commands.run", *arguments, "name=killed"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    second = tmp_path / "multirun/killed/tau=10,seed=0/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not second.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {f.parent.name for f in (tmp_path / "multirun/killed").glob("*/summary.json")}
    assert "tau=0,seed=0" in finished
    assert "tau=inf,seed=0" not in finished
    assert command(*arguments, "name=killed")[0] == 0
    for name in ("tau=0,seed=0", "tau=10,seed=0", "tau=inf,seed=0"):
        whole, killed = (tmp_path / "multirun" / s / name / "per_task.csv" for s in ("whole", "killed"))
        assert whole.read_text() == killed.read_text()
