"""A finished run is restored as the very model that was tested."""

import pytest

from bora.errors import InputError
from bora.interop.restore import restore
from tests.conftest import assert_restores, table


@pytest.mark.parametrize(
    ("tau", "form"), [("0", "centered"), ("100", "noncentered"), ("100", "centered"), ("inf", "centered")]
)
def test_a_restored_model_has_the_runs_own_test_nll(command, tmp_path, tau, form):
    path = table(tmp_path / "t.csv", {"a": 24, "b/c": 40})
    code, _, _ = command(
        f"tau={tau}", f"prior.parameterization={form}", "data=table", f"data.path={path}", "data.min_documents=5",
        "data.max_tokens=20", "trainer.max_epochs=1", "optim.lr=0.01", "hydra.run.dir=run", "logger=none",
    )  # fmt: skip
    assert code == 0
    assert_restores(tmp_path / "run", path)


def test_a_folder_without_a_finished_run_is_told(tmp_path):
    with pytest.raises(InputError, match="no finished run"):
        restore(tmp_path)
