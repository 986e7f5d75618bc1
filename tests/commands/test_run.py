"""The command from end to end: the run directory is the contract."""

import json
import math
import re
import shlex
import shutil
import subprocess

import pandas as pd
import pytest
import torch
import yaml

from bora.commands import generate
from bora.model.pretrained import load_packaged
from bora.runs.directory import RunDirectory
from bora.runs.values import hash_text
from bora.use.restore import restore
from tests.conftest import merged, one_line, table

MODULES = "data.modules=[argparse,pickle,ssl]"
SMALLER = "data.documents_per_task=12 data.min_documents=5 data.max_tokens=24 trainer.max_epochs=2".split()
SMALL = [MODULES, *SMALLER]
# The columns of per_task.csv and documents.csv, and keys of summary.json.
PER_TASK = "task n_train n_val n_test train_tokens test_tokens val_nll val_perplexity test_nll test_perplexity distance"
PER_TASK += " base_test_nll base_test_perplexity effect effect_error"
DOCUMENTS = "row task split n_tokens n_scored"
SUMMARY = """tau seed model data val_perplexity val_perplexity_macro test_perplexity test_perplexity_macro
base_test_perplexity best_epoch best_step epochs steps train_tokens_per_second params_per_task seconds
data_sha256 versions"""


@pytest.mark.parametrize("tau", ["0", "100", "inf"])
def test_the_run_directory_is_complete_and_its_perplexities_can_be_recomputed(command, call, tmp_path, tau):
    path = table(tmp_path / "t.csv", {"Zoë A.": 24, "b/c": 40, "NA": 12})
    data = f"data=table data.path={path} data.min_documents=5 data.drop_duplicates=false data.max_tokens=20"
    fit = f"tau={tau} seed=3 trainer.max_epochs=2 optim.lr=0.01 hydra.run.dir=run logger=none"
    code, out, err = command(*data.split(), *fit.split())
    assert (code, err) == (0, "")
    run = tmp_path / "run"
    *_, folder, following, _, generate_it, _ = out.splitlines()
    assert (folder, following) == (f"run directory: {run}", "next:")
    told = [float(nll) for nll in re.findall(r"epoch \d/2: train NLL (\S+),", out)]
    assert len(told) == 2
    per_task = pd.read_csv(run / "per_task.csv", keep_default_na=False)
    assert per_task.columns.tolist() == PER_TASK.split()
    assert per_task["task"].tolist() == ["b/c", "Zoë A.", "NA"]
    documents = pd.read_csv(run / "documents.csv", keep_default_na=False)
    assert documents.columns.tolist() == DOCUMENTS.split()
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) >= set(SUMMARY.split())
    assert (float(summary["tau"]), summary["seed"], summary["model"]) == (float(tau), 3, "opt_mini")
    assert summary["steps"] == 2 * math.ceil(per_task["n_train"].sum() / 16)
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["max_tokens"] == 20
    assert pd.read_csv(run / "metrics.csv")["val/perplexity"].notna().sum() >= 2
    assert len((run / "SHA256SUMS").read_text().splitlines()) == 10
    by_task = pd.read_csv(run / "validation_by_task.csv", keep_default_na=False)
    at_best = by_task[by_task["epoch"] == summary["best_epoch"]]
    assert at_best["task"].tolist() == per_task["task"].tolist()
    assert at_best["val_perplexity"].tolist() == pytest.approx(per_task["val_perplexity"].tolist(), rel=1e-5)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=run, check=True, capture_output=True)

    # From here on, use only the table, documents.csv, the checkpoint's LoRAs, and transformers' model of the base.
    texts = pd.read_csv(path, keep_default_na=False)["text"]
    tokenizer, restored = load_packaged("opt_mini").tokenizer, restore(run).model

    def nats_and_tokens(model, rows):
        nats = tokens = 0
        for row in rows.itertuples():
            ids = tokenizer(texts[row.row], return_tensors="pt").input_ids[:, :20]
            assert (row.n_tokens, row.n_scored) == (ids.shape[1], ids.shape[1] - 1)
            with torch.no_grad():
                nats += model(ids, labels=ids).loss.double().item() * row.n_scored
            tokens += row.n_scored
        return nats, tokens

    total, base_total, all_tokens = 0.0, 0.0, 0
    for row in per_task.itertuples():
        base, lora = load_packaged("opt_mini").model, restored.tasks[row.task]
        mine = documents[documents["task"] == row.task]
        sizes = [(mine["split"] == split).sum() for split in ("train", "validation", "test")]
        assert sizes == [row.n_train, row.n_val, row.n_test]
        test = mine[mine["split"] == "test"]
        nats, tokens = nats_and_tokens(base, test)
        assert (row.base_test_nll, row.base_test_perplexity) == pytest.approx((nats / tokens, math.exp(nats / tokens)))
        base_total += nats
        adapted = merged(base, lora, scale=16 / 16)
        nats, tokens = nats_and_tokens(adapted, test)
        assert row.test_tokens == tokens
        assert row.test_nll == pytest.approx(nats / tokens, rel=1e-5)
        assert row.test_perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-5)
        under_mean = merged(load_packaged("opt_mini").model, restored.mean, scale=16 / 16)
        assert row.effect == pytest.approx((nats_and_tokens(under_mean, test)[0] - nats) / tokens, abs=1e-5)
        pairs = zip(lora.values(), restored.mean.values(), strict=True)
        squares = sum((f - m).square().sum().item() for own, mean in pairs for f, m in zip(own, mean, strict=True))
        assert row.distance == pytest.approx(squares**0.5, rel=1e-4, abs=1e-6)
        nats_val, tokens_val = nats_and_tokens(adapted, mine[mine["split"] == "validation"])
        assert row.val_nll == pytest.approx(nats_val / tokens_val, rel=1e-5)
        total, all_tokens = total + nats, all_tokens + tokens
    assert summary["test_perplexity"] == pytest.approx(math.exp(total / all_tokens), rel=1e-5)
    assert summary["test_perplexity_macro"] == pytest.approx(per_task["test_perplexity"].mean(), rel=1e-9)
    assert summary["base_test_perplexity"] == pytest.approx(math.exp(base_total / all_tokens), rel=1e-5)
    assert summary["test_perplexity"] < summary["base_test_perplexity"]
    # The next command that is shown can be typed.
    words = shlex.split(generate_it)
    assert words[:5] == ["bora", "generate", "run", "--task", "b/c"]
    code, answer, err = call(generate.main, *words[2:], "--max-new-tokens", "1")
    assert (code, err) == (0, "")
    assert answer.startswith(f"prompt: {words[-1]}")


@pytest.mark.processes
def test_a_sweep_names_each_jobs_folder_by_its_values_and_ends_with_a_table(command, tmp_path):
    sweep = ["-m", "tau=0,1e3,inf", "seed=0,1", "prior.parameterization=centered", "name=s", *SMALL]
    sweep += ["trainer.max_epochs=1"]
    code, out, _ = command(*sweep)
    assert code == 0
    sync = "  wandb sync multirun/s/*/wandb/offline-run-*"
    assert out.splitlines()[-3:] == [sync, "next:", "  bora report multirun/s"]
    assert out.count("next:") == out.count("wandb sync") == 1
    names = {f"tau={t},seed={s}" for t in ("0", "1000", "inf") for s in (0, 1)}
    assert {f.parent.name for f in (tmp_path / "multirun/s").glob("*/summary.json")} == names
    rows = [line for line in out[out.index("τ → perplexity") :].splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == ["0", "1000", "inf"]
    for name in names:  # one finished W&B run for each job
        (run,) = (tmp_path / "multirun/s" / name / "wandb").glob("offline-run-*/run-*.wandb")
        assert run.stat().st_size > 0

    # The same command again runs no job.
    stamps = {f: f.stat().st_mtime_ns for f in tmp_path.glob("multirun/s/*/summary.json")}
    assert command(*sweep)[0] == 0
    assert {f: f.stat().st_mtime_ns for f in tmp_path.glob("multirun/s/*/summary.json")} == stamps
    # Other settings in the same folder would mix two sweeps, so not even the first job, which is new, is started.
    (overrides,) = tmp_path.glob("multirun/s/tau=inf,seed=0/.hydra/overrides.yaml")
    before = overrides.read_text()
    code, _, err = command("-m", "tau=7,inf", *sweep[2:], "lora.rank=2")
    assert code == 2
    assert "finished run with other settings (lora.rank)" in err
    assert not (tmp_path / "multirun/s/tau=7,seed=0").exists()
    assert overrides.read_text() == before  # the refused command has written nothing there
    assert "tau=inf" in before


def test_a_sweep_over_other_keys_names_folders_by_them(command, tmp_path):
    code, *_ = command("-m", "tau=10", "lora.rank=1,2", "name=s", "logger=none", *SMALL, "trainer.max_steps=1")
    assert code == 0
    names = {f"tau=10,seed=0,lora.rank={rank}" for rank in (1, 2)}
    assert {f.parent.name for f in tmp_path.glob("multirun/s/*/summary.json")} == names


def test_a_run_is_replayed_from_its_overrides(command, tmp_path):
    assert command("tau=7", "logger=none", "hydra.run.dir=a", *SMALL)[0] == 0
    code, out, err = command("--again", "a", "hydra.run.dir=b")
    assert (code, err, "--again: " in out) == (0, "", False)  # no default has changed
    assert (tmp_path / "a/per_task.csv").read_text() == (tmp_path / "b/per_task.csv").read_text()
    assert command("-m", "--again", "a", "tau=7,8", "hydra.sweep.dir=s")[0] == 0
    assert (tmp_path / "a/per_task.csv").read_text() == (tmp_path / "s/tau=7,seed=0/per_task.csv").read_text()
    assert command("--again", "a", "seed=1", "hydra.run.dir=c")[0] == 0
    assert (tmp_path / "a/per_task.csv").read_text() != (tmp_path / "c/per_task.csv").read_text()
    # A run's seed does not change its test set.
    assert (tmp_path / "a/documents.csv").read_text() == (tmp_path / "c/documents.csv").read_text()
    for words, line in (
        (["--again"], "--again needs one run directory"),
        (["--again", "a", "--again", "b"], "--again needs one run directory"),
        (["--again", "nowhere"], "overrides.yaml is not readable"),
        (["--again", "a", "data=nonsense"], "data=nonsense: there is no such choice"),
    ):
        one_line(command(*words), line)


def test_a_replay_may_change_groups_and_reports_changed_defaults(command, tmp_path):
    few = "data.n_tasks=2 data.documents_per_task=12 data.min_documents=5 data.max_tokens=24 trainer.max_epochs=2"
    assert command("tau=7", "logger=none", "hydra.run.dir=a", *few.split())[0] == 0
    config = tmp_path / "a/config.yaml"
    older = config.read_text().replace("  dropout: 0.0\n", "")  # as if written before this setting existed
    config.write_text(older.replace("alpha: 16.0", "alpha: 8.0"))  # as if this had been the default then
    path = table(tmp_path / "t.csv", {"a": 9, "b": 9})
    corpus = ["data=table", f"data.path={path}"]
    code, out, err = command("seed=1", "--again=a", "logger=tensorboard", *corpus, "hydra.run.dir=b")
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if line.startswith("--again")] == [
        "--again: lora.alpha: the run had 8.0, today's default is 16.0"
    ]
    assert (tmp_path / "b/tensorboard").is_dir()
    _, out, _ = command("--again", "a", "experiment=paper", *corpus, "data.min_documents=5", "hydra.run.dir=c")
    assert [line.split()[1] for line in out.splitlines() if line.startswith("--again")] == ["lora.alpha:"]
    cfg = RunDirectory(tmp_path / "b").config()
    assert (cfg.tau, cfg.seed, cfg.data.name, cfg.name) == (7, 1, "table", "table-opt_mini")
    assert cfg.trainer.max_epochs == 2  # from the replayed run


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ("data.batch_size=5 trainer.limit_train_batches=2", 4),
        ("data.batch_size=5 trainer.limit_train_batches=2 trainer.max_steps=3", 3),
        ("data.batch_size=5 trainer.limit_train_batches=2 trainer.max_steps=1", 1),
        ("data.batch_size=9 trainer.accumulate_grad_batches=2", 2),
    ],
)
def test_a_run_takes_as_many_steps_as_its_settings_say(command, tmp_path, settings, steps):
    code, _, err = command("logger=none", "hydra.run.dir=a", *SMALL, *settings.split())
    assert (code, err) == (0, "")
    assert json.loads((tmp_path / "a/summary.json").read_text())["steps"] == steps


def test_a_run_that_ends_before_any_validation_fails(command):
    code, _, err = command("logger=none", "hydra.run.dir=a", *SMALL, "trainer.extra.max_time=00:00:00:00")
    assert code == 2
    assert err.startswith("bora: training ended before any validation (by trainer.max_time")


def test_an_interrupted_run_copied_without_hidden_files_is_resumed(command, tmp_path):
    words = "logger=none", *SMALL, "trainer.max_steps=1"
    assert command(*words, "hydra.run.dir=a")[0] == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b", ignore=shutil.ignore_patterns(".*", "summary.json"))
    assert command(*words, "hydra.run.dir=b")[0] == 0


def test_a_users_own_files_are_not_overwritten(command, tmp_path):
    (tmp_path / "documents.csv").write_text("task,text\n")
    (tmp_path / "config.yaml").write_text("mine: 1\n")
    code, _, err = command("logger=none", "hydra.run.dir=.", *SMALL, "trainer.max_steps=1")
    assert (code, err.count("\n")) == (2, 1)
    assert "is not a run's folder and holds config.yaml, documents.csv, which the run would overwrite" in err
    assert (tmp_path / "config.yaml").read_text() == "mine: 1\n"


@pytest.mark.parametrize("logging", ["default", "stdout", "none", "disabled"])
def test_hydras_choices_of_job_logging_work(command, tmp_path, logging):
    code, _, err = command(
        "logger=none", "hydra.run.dir=a", *SMALL, "trainer.max_steps=1", f"hydra/job_logging={logging}"
    )
    assert (code, err) == (0, "")
    assert (tmp_path / "a/run.log").exists() == (logging == "default")


def test_a_sweeps_folders_may_be_nested(command, tmp_path):
    nested = ["-m", "tau=1,inf", "hydra.sweep.dir=s", "hydra.sweep.subdir=${seed}/${tau}", "logger=none"]
    code, out, _ = command(*nested, *SMALL, "trainer.max_steps=1")
    assert (tmp_path / "s/0/inf/summary.json").exists()
    assert (code, out[out.index("τ → perplexity") :].count("│   1 │     1 │")) == (0, 1)


def test_a_sweep_with_a_wrong_value_is_refused_before_its_first_job(command, tmp_path):
    one_line(command("-m", "tau=1,10,-1", "name=s", "logger=none", *SMALL), "bora: tau=-1 must be a number from 0")
    assert not list(tmp_path.rglob("tau=*"))


def test_a_crash_is_marked_as_failed_in_wandb(command, tmp_path, monkeypatch):
    codes = []
    import wandb

    finish = wandb.Run.finish
    monkeypatch.setattr(wandb.Run, "finish", lambda run, exit_code: (codes.append(exit_code), finish(run, exit_code)))

    def crash(self, batch, batch_idx):
        raise RuntimeError("the machine caught fire")

    monkeypatch.setattr("bora.train.module.TrainingModule.training_step", crash)
    with pytest.raises(RuntimeError, match="fire"):
        command("hydra.run.dir=a", *SMALL)
    assert codes == [1]
    assert not (tmp_path / "a/summary.json").exists()


def test_last_ckpt_is_of_the_last_epoch_and_best_ckpt_of_the_best(command, tmp_path):
    arguments = ["logger=none", "hydra.run.dir=a", "tau=0", "optim.lr=0.03", *SMALL, "trainer.max_epochs=9"]
    assert command(*arguments)[0] == 0  # at this learning rate validation gets worse in the end
    summary = json.loads((tmp_path / "a/summary.json").read_text())
    best, last = (torch.load(tmp_path / f"a/checkpoints/{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert (best["epoch"] + 1, last["epoch"] + 1) == (summary["best_epoch"], 9)
    assert summary["best_epoch"] < 9


def test_a_finished_run_is_reported_again_and_not_repeated(command, tmp_path):
    first = command("logger=none", "hydra.run.dir=a", *SMALL)[1]
    again = command("logger=none", "hydra.run.dir=a", *SMALL)[1]
    assert first[first.index("τ = 100") : first.index("next:")] == again[again.index("τ = 100") : again.index("next:")]


def test_a_run_starts_from_another(command, tmp_path):
    """At a negligible learning rate the new run ends where the old one did."""
    assert command(*SMALL, "tau=inf", "optim.lr=0.01", "logger=none", "hydra.run.dir=one")[0] == 0
    still = [*SMALL, "optim.lr=1e-9", "logger=none"]
    code, _, err = command(*still, "tau=1000", "init_from=one", "hydra.run.dir=two")
    assert (code, err) == (0, "")
    one, two = (json.loads((tmp_path / f"{name}/summary.json").read_text()) for name in ("one", "two"))
    assert two["test_perplexity"] == pytest.approx(one["test_perplexity"], rel=1e-6)
    assert two["test_perplexity"] < two["base_test_perplexity"] - 0.1
    one_line(command(*still, "init_from=nowhere", "hydra.run.dir=three"), "the folder holds neither a finished run")


def test_a_start_from_a_run_trained_on_this_runs_test_documents_is_reported(command, tmp_path):
    """A model that was trained on the present test documents looks better than it is."""
    rows = pd.read_csv(table(tmp_path / "old.csv", {"a": 12, "b": 12, "c": 12}))
    rows[rows["task"] != "c"].to_csv(tmp_path / "new.csv", index=False)
    how = ["data=table", "data.min_documents=5", "data.max_tokens=20", "logger=none", "trainer.max_epochs=2"]
    assert command(*how, "data.path=old.csv", "tau=30", "hydra.run.dir=one")[0] == 0
    again = [*how, "data.path=new.csv", "init_from=one", "data.split.seed=1"]
    code, out, err = command(*again, "tau=learn", "hydra.run.dir=two")
    assert code == 0, err
    documents, known = RunDirectory(tmp_path / "two").documents(), RunDirectory(tmp_path / "one").trained_on()
    test = documents.query("split == 'test'")["row"]
    n = sum(hash_text(text) in known for text in pd.read_csv(tmp_path / "new.csv")["text"][test])
    assert n > 0
    assert f"trained on, or chosen by, {n} of this run's {len(test)} test documents" in out
    assert "tau=learn takes only Θ" in out
    assert "2 of 2 tasks start at their own LoRA" in out
    assert "no task c: their LoRAs are not used" in out
    assert RunDirectory(tmp_path / "two").trained_on() > known


def test_auto_does_not_choose_a_macs_gpu(command, monkeypatch):
    """A Mac's GPU has no float64."""
    monkeypatch.setattr("lightning.fabric.accelerators.mps.MPSAccelerator.is_available", lambda: True)
    assert command("logger=none", *SMALL, "trainer.accelerator=auto", "trainer.max_steps=1")[0] == 0
