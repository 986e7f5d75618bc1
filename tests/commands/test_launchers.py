"""Sweeps over several processes, with the real launchers and the real Optuna."""

import json
import os
import shutil
import subprocess
import sys

import psutil
import pytest
from omegaconf import OmegaConf

from tests.faults.processes import wait_for

pytestmark = pytest.mark.processes

SMALL = "data.modules=[pickle,ssl,argparse] data.documents_per_task=12 data.min_documents=5 data.max_tokens=20"
SMALL = [*SMALL.split(), "data.batch_size=6", "trainer.max_epochs=1", "name=s"]


def run(folder, *command) -> subprocess.CompletedProcess:
    """Run Python with these arguments in a separate process, as the launchers do."""
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "HYDRA_FULL_ERROR")}
    env["WANDB_MODE"] = "offline"
    words = [sys.executable, *command]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)


def sweep(folder, *arguments: str) -> subprocess.CompletedProcess:
    return run(folder, "-m", "bora.run", "-m", *SMALL, *arguments)


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serial")
    done = sweep(folder, "tau=1,inf", "logger=none")
    assert done.returncode == 0, done.stderr
    return folder / "multirun/s"


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_reach_the_same_numbers_as_a_serial_sweep(launcher, serial, tmp_path):
    done = sweep(tmp_path, f"sweep={launcher}", "tau=1,inf")
    assert done.returncode == 0, done.stderr
    assert "τ → perplexity" in done.stdout
    for name in ("tau=1,seed=0", "tau=inf,seed=0"):
        ours, theirs = (json.loads((f / name / "summary.json").read_text()) for f in (tmp_path / "multirun/s", serial))
        assert ours["test_perplexity"] == pytest.approx(theirs["test_perplexity"], rel=1e-5)
        if launcher == "joblib":  # an equal share of the cores
            assert ours["threads"] == max(1, os.cpu_count() // 2)
        (run,) = (tmp_path / "multirun/s" / name / "wandb").glob("offline-run-*/run-*.wandb")
        assert run.stat().st_size > 0


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_sweep_stopped_by_a_signal_stops_the_launchers_processes(tmp_path, launcher):
    long = [f"sweep={launcher}", "tau=1,inf", "logger=none", "trainer.max_epochs=5000", "optim.patience=5000"]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        words = [sys.executable, "-m", "bora.run", "-m", *SMALL, *long]
        process = subprocess.Popen(words, cwd=tmp_path, stdout=out, stderr=err)
    last = [tmp_path / f"multirun/s/tau={tau},seed=0/checkpoints/last.ckpt" for tau in ("1", "inf")]
    wait_for(lambda: all(file.is_file() for file in last), process, seconds=180)
    jobs = psutil.Process(process.pid).children(recursive=True)
    assert len(jobs) >= 2
    process.terminate()
    assert process.wait(120) == 143
    assert "bora: stopped by SIGTERM" in (tmp_path / "err").read_text()
    assert not psutil.wait_procs(jobs, timeout=60)[1]  # none goes on training
    assert not list(tmp_path.glob("multirun/s/*/failed.json"))


def test_an_unreadable_failed_json_does_not_hide_the_sweeps_table(serial, tmp_path):
    shutil.copytree(serial, tmp_path / "multirun/s")
    (tmp_path / "multirun/s/tau=9,seed=0").mkdir()
    (tmp_path / "multirun/s/tau=9,seed=0/failed.json").write_text("{")
    done = sweep(tmp_path, "tau=1,inf", "logger=none")
    assert (done.returncode, "τ → perplexity" in done.stdout) == (0, True), done.stderr


def test_optuna_minimises_the_validation_perplexity(tmp_path):
    search = ["sweep=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.params.tau='tag(log, interval(1, 1e4))'"]
    done = sweep(tmp_path, *search, "logger=none")
    assert done.returncode == 0, done.stderr
    summaries = [json.loads(f.read_text()) for f in (tmp_path / "multirun/s").glob("*/summary.json")]
    assert len(summaries) == 3
    assert all(1 <= s["tau"] <= 1e4 for s in summaries)
    best = min(summaries, key=lambda s: s["val_perplexity"])
    found = OmegaConf.load(tmp_path / "multirun/s/optimization_results.yaml")
    assert found.best_value == pytest.approx(best["val_perplexity"])
    assert found.best_params.tau == pytest.approx(best["tau"])
    # The same command proposes the same trials, and finished ones are not run again.
    stamps = {f: f.stat().st_mtime_ns for f in tmp_path.glob("multirun/s/*/summary.json")}
    assert sweep(tmp_path, *search, "logger=none").returncode == 0
    assert {f: f.stat().st_mtime_ns for f in tmp_path.glob("multirun/s/*/summary.json")} == stamps


def test_optuna_takes_another_sampler_and_refuses_a_database(tmp_path):
    search = ["sweep=optuna", "hydra.sweeper.n_trials=2", "logger=none"]
    done = sweep(tmp_path, *search, "hydra/sweeper/sampler=random")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "multirun/s").glob("*/summary.json"))) == 2
    done = sweep(tmp_path, *search, "hydra.sweeper.storage='sqlite:///o.db'")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("bora: hydra.sweeper.storage: Optuna cannot use it")


def test_a_search_without_a_finished_trial_is_reported(tmp_path):
    worse = ["sweep=optuna", "hydra.sweeper.n_trials=2", "logger=none", "optim.lr=1e9", "lora.alpha=1e9"]
    done = sweep(tmp_path, *worse)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("bora: no trial of the search has finished")


def test_a_users_module_does_not_shadow_the_standard_librarys(serial, tmp_path):
    (tmp_path / "random.py").write_text("raise ImportError('mine')\n")
    script = [shutil.which("bora", path=os.path.dirname(sys.executable)), "run", "-m", *SMALL]
    done = run(tmp_path, *script, "sweep=joblib", "tau=1,inf", "logger=none")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "multirun/s").glob("*/summary.json"))) == 2


def test_a_missing_launcher_is_refused_in_one_line(tmp_path):
    blocked = tmp_path / "blocked.py"
    blocked.write_text(
        "import sys, hydra_plugins\n"
        "hydra_plugins.__path__ = []\n"  # as if no plugin were installed
        "from bora.commands.run import main\n"
        "sys.argv = ['bora.run', '-m', 'sweep=joblib', 'tau=1,2']\n"
        "main()\n"
    )
    done = run(tmp_path, blocked)
    assert done.returncode == 2
    line = "bora: hydra/launcher/joblib is not installed: pip install hydra-joblib-launcher"
    assert done.stderr.splitlines()[-1] == line
