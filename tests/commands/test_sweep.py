"""The command line of sweeps: distinct names, lasting records of failures, tables, completion."""

import json
import subprocess
import sys

import pytest

import bora.commands.completion
import bora.commands.ls
from bora.commands.exits import describe_error
from bora.commands.overrides import prepare
from bora.config.compose import compose_whole
from bora.errors import UserError
from bora.runs.directory import FolderInUse, RunDirectory
from bora.runs.sweep import record_failure
from tests.conftest import table

SMALL = ["data.modules=[pickle,ssl]", "data.documents_per_task=9", "data.min_documents=3", "logger=none", "name=s"]
SMALL += ["trainer.max_steps=1", "data.max_tokens=20"]


@pytest.mark.parametrize(
    ("sweep", "why"),
    [
        (["tau=1,1.0"], "tau=1,seed=0 (tau=1 and tau=1.0)"),
        (["tau=1", "seed=0,0"], "tau=1,seed=0 (a value is given twice)"),
        (["tau=1,2", "hydra.sweep.subdir=x"], "x (tau=1 and tau=2)"),
        (["tau=1,2", "hydra.sweep.subdir='${seed}'"], "0 (tau=1 and tau=2)"),
    ],
)
def test_two_jobs_with_one_folder_are_refused_before_the_first(command, tmp_path, sweep, why):
    code, _, err = command("-m", *SMALL, *sweep)
    assert (code, err.startswith(f"bora: two jobs of the sweep would share the folder {why}")) == (2, True), err
    assert not any(tmp_path.iterdir())


def test_given_values_replace_those_of_an_experiment(command):
    _, out, _ = command("-m", "experiment=paper", "tau=inf", "seed=0,1", "model=opt_mini", "data.path=nowhere")
    assert "Launching 2 jobs" in out


def test_a_glob_selects_among_a_groups_choices(command):
    code, _, said = command("-m", "model=glob(opt_min*)", "tau=1", "data.n_tasks=x")
    assert code == 2
    assert "data.n_tasks" in said


@pytest.mark.parametrize("sweep", ["joblib", "submitit_local", "submitit"])
def test_a_gpu_is_required_only_where_the_jobs_run(sweep):
    words = ["-m", f"sweep={sweep}", "trainer=gpu", "tau=1,2"]
    if sweep == "submitit":  # a cluster's login node needs none
        assert prepare(words)[:1] == ["-m"]
    else:
        with pytest.raises(UserError, match="torch sees no GPU on this machine"):
            prepare(words)


@pytest.mark.parametrize(
    ("words", "launcher"),
    [
        ("trainer=gpu", [1, 1, 1]),
        ("trainer=ddp trainer.num_nodes=3 trainer.devices=4", [3, 4, 4]),
        ("trainer=ddp hydra.launcher.nodes=2", None),
        ("trainer=ddp hydra.launcher.tasks_per_node=4", None),
        ("trainer=ddp trainer.num_nodes=1,2", None),  # all jobs of an array have the same size
    ],
)
def test_slurm_starts_one_task_for_each_process(words, launcher):
    words = ["sweep=submitit", *words.split(), "tau=1,2"]
    if launcher is None:
        with pytest.raises(UserError, match="but the sweep's jobs would have"):
            prepare(["-m", *words])
    else:
        prepare(["-m", *words])
        found = compose_whole(words[:-1]).hydra.launcher
        assert [found.nodes, found.tasks_per_node, found.gpus_per_node] == launcher


def test_the_record_of_a_refused_job_stays_when_the_run_that_holds_the_folder_finishes(tmp_path, trained):
    folder = tmp_path / "multirun/s/tau=1,seed=0"
    config = RunDirectory(trained()).config()
    with RunDirectory(folder).locked():
        with pytest.raises(FolderInUse) as refused, RunDirectory(folder).locked():
            pass
        record_failure(refused.value, folder, describe_error(refused.value))
        RunDirectory(folder).claim(config)
        RunDirectory(folder).write_summary({})
    (kept,) = folder.glob("failed*.json")
    assert "another process is working in" in json.loads(kept.read_text())["error"]


def test_a_refused_run_removes_its_folder_only_if_it_was_empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    for place, stays in (("outputs/a/b", False), ("mine", True)):
        with pytest.raises(UserError), RunDirectory(tmp_path / place).locked():
            raise UserError("no such table")
        assert (tmp_path / place).exists() == stays
    assert not (tmp_path / "outputs").exists()


def test_the_table_averages_over_seeds_and_marks_the_tau_with_the_best_validation(command, tmp_path, call):
    path = table(tmp_path / "t.csv", {"a": 12, "b": 12})
    words = [*SMALL[1:], "data=table", f"data.path={path}"]
    code, out, _ = command("-m", *words, "tau=1,inf", "seed=0,1", "optim.lr=0.01")
    assert code == 0
    summaries = {f.parent.name: json.loads(f.read_text()) for f in tmp_path.glob("multirun/s/*/summary.json")}
    means = {}
    for tau in ("1", "inf"):
        values = [summaries[f"tau={tau},seed={seed}"]["val_perplexity"] for seed in (0, 1)]
        means[tau] = sum(values) / 2
        half = abs(values[0] - values[1]) / 2**0.5  # the standard deviation of two values
        assert f"{means[tau]:.2f} ± {half:.2f}" in out
    best = min(means, key=means.get)
    (marked,) = (line for line in out.splitlines() if " * │" in line)
    assert marked.split("│")[1].strip() == best

    # bora ls has the same numbers, one line for each run, and reports unfinished ones.
    (tmp_path / "multirun/s/tau=1,seed=1/summary.json").unlink()
    code, listed, err = call(bora.commands.ls.main, tmp_path)
    assert (code, listed.count("multirun/s/tau=")) == (0, 3)
    assert err == "bora: multirun/s/tau=1,seed=1: unfinished\n"
    edited = tmp_path / "multirun/s/tau=1,seed=0/summary.json"
    edited.write_text(json.dumps({k: v for k, v in json.loads(edited.read_text()).items() if k != "test_perplexity"}))
    code, listed, err = call(bora.commands.ls.main, tmp_path)
    assert (code, listed.count("multirun/s/tau=")) == (0, 2)
    assert "summary.json lacks 'test_perplexity'" in err
    code, _, err = call(bora.commands.ls.main, tmp_path / "nowhere")
    assert (code, err) == (2, f"bora: {tmp_path / 'nowhere'}: there is no such folder\n")


@pytest.mark.processes
def test_bash_completes_settings(tmp_path):
    script = tmp_path / "complete.sh"
    bora_run = f"{sys.executable} -c 'import sys; sys.argv[0] = \"bora\"; from bora.cli import main; main()'"
    lines = [f'bora() {{ {bora_run} "$@"; }}', 'eval "$(bora completion)"']
    for line in ("bora rep", "bora run ta", "bora run tau=1 data=t", "bora run lora.ra"):
        words = line.split()
        lines += [f"COMP_LINE='{line}' COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}", "_bora"]
        lines += ['echo "${COMPREPLY[*]}"']
    script.write_text("\n".join(lines))
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["report", "tau=", "data=table data=talk_of_norway", "lora.rank="]
