"""A finished run is restored as the very model that was tested."""

import shutil

import pytest

from bora.errors import UserError
from bora.use.restore import restore
from tests.conftest import assert_restores


@pytest.mark.parametrize(
    "overrides", [["tau=0"], ["tau=100"], ["tau=100", "prior.parameterization=centered"], ["tau=inf"]]
)
def test_a_restored_model_has_the_runs_own_test_nll(trained, overrides):
    run = trained(*overrides)
    assert_restores(run, run.parent / "t.csv")


def test_what_is_not_there_is_named(trained, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no finished run"):
        restore(tmp_path)
    run = trained("tau=100")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no CUDA device"):
        restore(run, "cuda")
    with pytest.raises(UserError, match=r"no task A longer name; did you mean a longer name\?"):
        restore(run).require_tasks(["a", "A longer name"])
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    gone = config.read_text().replace("source: packaged", "source: hub").replace("asset: opt_mini", "path: ./nowhere")
    config.write_text(gone)
    with pytest.raises(UserError, match=r"^model.path=./nowhere: there is no such folder$"):
        restore(tmp_path / "run")
