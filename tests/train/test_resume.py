"""A run that is interrupted and resumed ends with the same bytes as an uninterrupted one; other inputs are refused."""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import bora
import bora.train.trainer
from bora.errors import UserError
from bora.train.module import TrainingModule
from tests.conftest import one_line, same_files, table

SMALL = "logger=none data.modules=[pickle,ssl,argparse] data.documents_per_task=12 data.min_documents=5".split()
SMALL += "data.max_tokens=20 data.batch_size=6 trainer.max_epochs=3 trainer.log_every_n_steps=2".split()
EACH_STEP = "checkpoint_minutes=0 trainer.log_every_n_steps=1"
ACCUMULATED = "data.batch_size=2 trainer.accumulate_grad_batches=3"
HALVES = "data.batch_size=3 trainer.val_check_interval=0.5"
ACROSS = "trainer.val_check_interval=4"  # batches: more than an epoch has
LEARN = "tau=learn trainer.max_epochs=9 optim.lr=0.02"  # trains deviations from the seventh epoch on
EARLY = "tau=0 optim.lr=0.01 optim.patience=1 trainer.max_epochs=9"


class Stop(Exception):
    """Stands in for anything that ends a process in the middle of a run."""


@pytest.fixture
def stopped(command, monkeypatch, capfd):
    """Run the command up to the count-th call of TrainingModule.`what`, where it is interrupted."""

    def run(what: str, count: int, *arguments: str) -> None:
        original, calls = getattr(TrainingModule, what), []

        def fail(self, *args):
            calls.append(1)
            if len(calls) == count:
                raise Stop("the machine went away")
            return original(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(TrainingModule, what, fail)
            with pytest.raises(Stop):
                command(*arguments)
        capfd.readouterr()  # drop the overrides that Hydra has printed

    return run


class Case(NamedTuple):
    """An interruption.

    Attributes:
        settings: in addition to SMALL.
        what, count: the call of TrainingModule that is interrupted.
        saved: optimiser steps in last.ckpt at that time, -1 for all of the run's; None if there is no last.ckpt.
    """

    settings: str
    what: str
    count: int
    saved: int | None


# An epoch has three steps, unless the batch size is changed.
CASES = {
    "in the first epoch": Case("", "training_step", 2, None),
    "in the second epoch": Case("", "training_step", 5, 3),
    "while validating": Case("", "validation_step", 2, 3),
    "while testing": Case("", "test_step", 1, 9),
    "within an epoch": Case(EACH_STEP, "training_step", 6, 5),
    "tau=0": Case(f"tau=0 data.batch_size=4 {EACH_STEP}", "training_step", 4, 3),
    "tau=inf": Case(f"tau=inf data.batch_size=4 {EACH_STEP}", "training_step", 4, 3),
    "a schedule": Case(f"optim.schedule=cosine optim.warmup_steps=3 {EACH_STEP}", "training_step", 6, 5),
    "learning tau, in the deviations": Case(f"{LEARN} {EACH_STEP}", "training_step", 21, 20),
    "learning tau, half epochs": Case(f"{LEARN} {HALVES} checkpoint_minutes=0", "training_step", 47, 46),
    "averages": Case(f"optim.average=true {EACH_STEP}", "training_step", 6, 5),
    "learning tau, averages": Case(f"{LEARN} optim.average=true {EACH_STEP}", "training_step", 21, 20),
    "levels": Case(f"data.levels=[summary] tau=[10,20] {EACH_STEP}", "training_step", 6, 5),
    "learning tau of levels": Case(f"{LEARN} data.levels=[summary] {EACH_STEP}", "training_step", 24, 23),
    "dropout": Case(f"lora.dropout=0.3 model.gradient_checkpointing=true {EACH_STEP}", "training_step", 6, 5),
    "dense prior": Case(f"prior.estimator=dense {EACH_STEP}", "training_step", 5, 4),
    "accumulated batches": Case(f"{ACCUMULATED} {EACH_STEP}", "training_step", 6, 1),
    "max_steps in the first epoch": Case(f"trainer.max_steps=2 {EACH_STEP}", "validation_step", 1, 1),
    "max_steps in an epoch, training": Case(f"trainer.max_steps=5 {EACH_STEP}", "training_step", 5, 4),
    "max_steps at an epoch's end": Case(f"trainer.max_steps=6 {EACH_STEP}", "test_step", 1, 6),
    "before a validation within an epoch": Case(f"{HALVES} checkpoint_minutes=0", "training_step", 4, 2),
    "while validating in the second epoch": Case(f"{ACROSS} checkpoint_minutes=0", "validation_step", 1, 3),
    "after a validation in the second epoch": Case(f"{ACROSS} checkpoint_minutes=0", "training_step", 6, 5),
    "a validation at an epoch's end": Case("trainer.val_check_interval=6", "training_step", 8, 6),
    "stopped early": Case(EARLY, "test_step", 1, -1),  # when depends on the texts, so on Python's version
}


def epochs_told(run: Path) -> list[str]:
    """Return the lines about epochs, without the speed and without repetitions."""
    lines = re.findall(r"^(epoch .*), \S+ tokens/s$", (run / "run.log").read_text(), re.MULTILINE)
    return list(dict.fromkeys(lines))


# The others, which Lightning counts differently, run with the tests of processes.
USUAL = {"in the second epoch", "while testing", "within an epoch", "tau=0", "tau=inf", "dropout", "stopped early"}
USUAL |= {"averages", "learning tau, in the deviations", "before a validation within an epoch"}


@pytest.mark.parametrize("name", [c if c in USUAL else pytest.param(c, marks=pytest.mark.processes) for c in CASES])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(command, stopped, tmp_path, name):
    settings, what, count, saved = CASES[name]
    arguments = [*SMALL, *settings.split()]
    assert command(*arguments, "hydra.run.dir=whole")[0] == 0
    stopped(what, count, *arguments, "hydra.run.dir=stopped")
    assert not (tmp_path / "stopped/summary.json").exists()
    last = tmp_path / "stopped/checkpoints/last.ckpt"
    steps = json.loads((tmp_path / "whole/summary.json").read_text())["steps"]
    found = torch.load(last, weights_only=True)["global_step"] if last.exists() else None
    assert found == (steps if saved == -1 else saved)
    (tmp_path / "stopped").rename(tmp_path / "moved")
    code, out, _ = command(*arguments, "hydra.run.dir=moved")
    assert (code, "resuming from" in out) == (0, saved is not None)
    same_files(tmp_path / "whole", tmp_path / "moved")
    assert epochs_told(tmp_path / "whole") == epochs_told(tmp_path / "moved")
    assert not (tmp_path / "stopped").exists()


def test_a_table_written_after_the_run_finished_is_reported(command, tmp_path):
    path = table(tmp_path / "t.csv", {"a": 12, "b": 12})
    words = "logger=none data=table data.path=t.csv data.min_documents=5 data.max_tokens=9 trainer.max_steps=1".split()
    told = []
    for later in (-60, -60, 60):
        os.utime(path, (path.stat().st_atime, time.time() + later))
        code, out, err = command(*words, "hydra.run.dir=run")
        assert code == 0
        told.append((out + err).count("was written after this run had finished"))
    assert told == [0, 0, 1]


def test_patience_and_best_epoch_count_validations(command, tmp_path):
    for name, more in (("half", HALVES), ("early", EARLY), ("longer", f"{EARLY} trainer.extra.min_epochs=4")):
        assert command(*SMALL, *more.split(), f"hydra.run.dir={name}")[0] == 0
    half, early, longer = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("half", "early", "longer"))
    figures = pd.read_csv(tmp_path / "half/metrics.csv").dropna(subset="val/nll").iloc[:-1]  # the last repeats the best
    assert list(figures["epoch"] + 1) == sorted([*range(1, half["epochs"] + 1)] * 2)
    assert half["best_epoch"] == figures["epoch"][figures["val/nll"].idxmin()] + 1
    assert early["epochs"] == early["best_epoch"] + 1 < 4
    assert longer["epochs"] == 4
    if sys.version_info[:2] == (3, 11):  # with its texts the third epoch is worse and the fourth the best
        assert longer["best_epoch"] == 4
    # Steps after the last validation do not count as an epoch without improvement.
    assert command(*SMALL, "trainer.max_steps=5", "hydra.run.dir=steps")[0] == 0
    state = torch.load(tmp_path / "steps/checkpoints/last.ckpt", weights_only=True)["callbacks"]
    assert {s["wait_count"] for s in state.values() if "wait_count" in s} == {0}


def test_validations_are_every_n_batches_across_epochs(command, tmp_path):
    assert command(*SMALL, ACROSS, "hydra.run.dir=all")[0] == 0
    assert command(*SMALL, *EARLY.split(), ACROSS, "hydra.run.dir=early")[0] == 0
    for name, n in (("all", 2), ("early", None)):
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        state = torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["Progress"]
        epochs, losses, steps = zip(*state["history"], strict=True)
        assert steps == tuple(4 * (i + 1) for i in range(n or len(steps)))
        assert epochs == tuple(-(-step // 3) for step in steps)
        best = losses.index(min(losses))
        assert (summary["best_epoch"], summary["best_step"]) == (epochs[best], steps[best])
        if name == "early":  # patience of one validation without improvement
            assert summary["steps"] == steps[best] + 4 == steps[-1] < 27
    assert "testing the best epoch, 3 (step 8)" in (tmp_path / "all/run.log").read_text()
    told = command(*SMALL, "trainer.val_check_interval=10", "hydra.run.dir=never")
    one_line(told, "trainer.val_check_interval=10: the run has 9 batches", "give at most 9")


def test_a_signal_in_the_last_step_waits_for_the_end_of_training(command, tmp_path, monkeypatch):
    arguments = [*SMALL, "trainer.max_steps=5"]
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


def with_another_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


UNREADABLE = "is not a readable checkpoint"
CHECKPOINT = [lambda data: b"", lambda data: data[: len(data) // 2], with_another_bit]
# For each file: the damage to its bytes (None: the file is gone), and the message.
DAMAGES = {
    "metrics.csv": [
        (lambda rows: None, "is needed to resume, but not readable"),
        (lambda rows: rows[:-20], "was changed or truncated since the last checkpoint"),
        (lambda rows: rows.replace(b"0,", b"5,", 1), "was changed or truncated since the last checkpoint"),
    ],
    "checkpoints/last.ckpt": [(damage, UNREADABLE) for damage in CHECKPOINT],
    "checkpoints/best.ckpt": [(damage, UNREADABLE) for damage in CHECKPOINT],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_of_an_interrupted_run_is_refused_and_left_unchanged(command, stopped, tmp_path, name):
    arguments = [*SMALL, "trainer.max_epochs=1", "hydra.run.dir=a"]
    stopped("test_step", 1, *arguments)
    file, whole = tmp_path / "a" / name, (tmp_path / "a" / name).read_bytes()
    if name == "metrics.csv":  # rows after the last checkpoint are written again
        whole = whole[: torch.load(tmp_path / "a/checkpoints/last.ckpt", weights_only=True)["metrics_bytes"]]
    for damage, told in DAMAGES[name]:
        damaged = damage(whole)
        file.unlink(missing_ok=True)
        if damaged is not None:
            file.write_bytes(damaged)
        code, _, err = command(*arguments)
        line = err.splitlines()[-1]
        assert (code, line[:6], name in line, told in line) == (2, "bora: ", True, True), line
        assert "resume=never" in line
        assert not file.exists() if damaged is None else file.read_bytes() == damaged


def test_an_interrupted_run_with_other_settings_is_refused_or_restarted(command, stopped, tmp_path):
    stopped("training_step", 5, "lora.rank=3", *SMALL, "hydra.run.dir=a")
    code, _, err = command(*SMALL, "hydra.run.dir=a")
    assert code == 2
    assert "holds an interrupted run with other settings (lora.rank); use the same, choose another folder" in err
    code, out, _ = command(*SMALL, "hydra.run.dir=a", "resume=never")
    assert code == 0
    assert "resume=never: removing the interrupted run" in out
    assert command(*SMALL, "hydra.run.dir=b")[0] == 0
    same_files(tmp_path / "a", tmp_path / "b")


def swap_two_words(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["Ġthe"], vocabulary["Ġa"] = vocabulary["Ġa"], vocabulary["Ġthe"]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))


def change_the_activation(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"activation_function": "gelu"}))


def change_one_weight(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.decoder.layers.1.fc1.weight"][7, 5] += 1e-3
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def test_another_corpus_or_backbone_under_the_same_settings_is_refused(command, stopped, tmp_path):
    path = table(tmp_path / "t.csv", {"a": 24, "b": 30})
    shutil.copytree(Path(bora.__file__).parent / "assets/opt_mini", tmp_path / "model")
    arguments = "logger=none data=table data.path=t.csv data.min_documents=5 data.max_tokens=20 trainer.max_epochs=3"
    arguments = [*arguments.split(), "model=hub", "model.path=./model", "hydra.run.dir=a"]
    stopped("training_step", 3, *arguments)
    whole_text = path.read_text()
    path.write_text(whole_text.replace("vote", "veto"))
    code, _, err = command(*arguments)
    assert code == 2
    assert "checkpoints/last.ckpt is from a run with another corpus or tokenizer; use the same as that run" in err
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
        assert f"is from a run with another {what};" in err
    assert not (tmp_path / "a/summary.json").exists()


def test_checkpoints_of_another_run_or_epoch_are_refused(command, stopped, tmp_path):
    arguments = ["tau=10", "optim.lr=3e-4", *SMALL]  # each epoch is better than the previous one
    best, last = (tmp_path / f"a/checkpoints/{name}.ckpt" for name in ("best", "last"))
    stopped("training_step", 7, *arguments, "hydra.run.dir=a")
    earlier = best.read_bytes()
    stopped("test_step", 1, *arguments, "hydra.run.dir=a")
    stopped("test_step", 1, *arguments, "optim.clip=9", "hydra.run.dir=b")
    rows, names = tmp_path / "a/metrics.csv", ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.csv")
    whole = {file: file.read_bytes() for file in (best, last, rows)}
    theirs = [(tmp_path / "b" / name).read_bytes() for name in names]
    for files, told in (
        ({best: earlier}, "best.ckpt does not match this run: its validation NLL is"),
        ({best: theirs[0]}, "best.ckpt is from a run with another optim.clip;"),
        ({last: theirs[1], rows: theirs[2]}, "last.ckpt is from a run with another optim.clip;"),
    ):
        for file, data in (whole | files).items():
            file.write_bytes(data)
        code, _, err = command(*arguments, "hydra.run.dir=a")
        assert (code, told in err) == (2, True)
        assert not (tmp_path / "a/summary.json").exists()


@pytest.mark.processes
@pytest.mark.parametrize(("error", "exit_code"), [(RuntimeError, 1), (UserError, 2)])
def test_a_failed_job_of_a_sweep_stops_no_other_and_runs_again(command, tmp_path, monkeypatch, error, exit_code):
    arguments = ["-m", "tau=5,10,20", "name=s", *SMALL, "trainer.max_epochs=1"]
    build = bora.train.trainer.build_fitter

    def broken(cfg, *rest):
        if cfg.tau == 10:
            raise error("out of luck")
        return build(cfg, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("bora.train.run.build_fitter", broken)
        code, out, err = command(*arguments)
        assert command(*arguments)[0] == exit_code  # the job fails again with the same exit code
    sweep, defect = tmp_path / "multirun/s", error is RuntimeError
    said = "RuntimeError: out of luck" if defect else "out of luck"
    assert (code, "Traceback" in out + err) == (exit_code, defect)
    assert err.splitlines()[-2:] == ["bora: 1 of the sweep's jobs failed:", f"bora: tau=10,seed=0: {said}"]
    assert json.loads((sweep / "tau=10,seed=0/failed.json").read_text())["error"] == said
    rows = [line for line in out[out.index("τ → perplexity") :].splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == ["5", "20"]
    stamp = (sweep / "tau=5,seed=0/summary.json").stat().st_mtime_ns
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    assert stamp == (sweep / "tau=5,seed=0/summary.json").stat().st_mtime_ns
    assert (sweep / "tau=10,seed=0/summary.json").exists()
