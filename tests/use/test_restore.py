"""A finished run is restored as the very model that was tested."""

import shutil
from pathlib import Path

import pytest

import bora
from bora.errors import UserError
from bora.use import evaluate, export, generate
from bora.use.restore import restore
from tests.conftest import assert_restores, table


@pytest.mark.parametrize(
    ("tau", "form"), [("0", "centered"), ("100", "noncentered"), ("100", "centered"), ("inf", "centered")]
)
def test_a_restored_model_has_the_runs_own_test_nll(command, tmp_path, tau, form):
    path = table(tmp_path / "t.csv", {"a": 24, "b/c": 40})
    code, _, _ = command(
        f"tau={tau}",
        f"prior.parameterization={form}",
        "data=table",
        f"data.path={path}",
        "data.min_documents=5",
        "data.max_tokens=20",
        "trainer.max_epochs=1",
        "optim.lr=0.01",
        "hydra.run.dir=run",
        "logger=none",
    )
    assert code == 0
    assert_restores(tmp_path / "run", path)
    config = tmp_path / "run/config.yaml"
    earlier = config.read_text().replace("bora.model.pretrained.packaged", "bora.model.backbone.packaged")
    assert earlier != config.read_text()
    config.write_text(earlier)  # as runs of before the loaders moved have it
    assert_restores(tmp_path / "run", path)


def test_a_folder_without_a_finished_run_is_told(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        restore(tmp_path)


@pytest.mark.parametrize("use", [export, generate, evaluate], ids=lambda use: use.__name__.rsplit(".", 1)[1])
def test_a_model_that_is_gone_is_told_in_one_line(command, call, tmp_path, use):
    path = table(tmp_path / "t.csv", {"a": 24, "b": 40})
    shutil.copytree(Path(bora.__file__).parent / "assets/opt_mini", tmp_path / "model")
    code, _, _ = command(
        "data=table",
        f"data.path={path}",
        "data.min_documents=5",
        "data.max_tokens=20",
        "trainer.max_steps=1",
        "model=hub",
        "model.path=./model",
        "hydra.run.dir=run",
        "logger=none",
    )
    assert code == 0
    shutil.rmtree(tmp_path / "model")
    more = {export: ["out"], generate: ["--task", "a", "--prompt", "x"], evaluate: ["--data", path]}[use]
    code, _, err = call(use.main, "run", *more)
    assert (code, err) == (2, "bora: model.path=./model: there is no such folder\n")
