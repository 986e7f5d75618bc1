"""No secret gets into a run's files: the config has no place for one, and those of the environment stay there."""

from pathlib import Path

import pytest

from bora.commands import report
from tests.conftest import table

SECRETS = {
    "WANDB_API_KEY": "5ec5e7a0" * 5,  # pragma: allowlist secret
    "HF_TOKEN": "hf_hushhushhush",
    "MLFLOW_TRACKING_PASSWORD": "open-sesame-please",  # pragma: allowlist secret
}
RUN = "data=table data.path=t.csv data.min_documents=5 data.max_tokens=16 data.drop_duplicates=false".split()
RUN += ["trainer.max_epochs=1", "lora.rank=1"]


def assert_none_in(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 10
    for file in files:
        content = file.read_bytes()
        for name, secret in SECRETS.items():
            assert secret.encode() not in content, f"{name} is in {file}"


# Only W&B's is in the ordinary suite, since the others take ten seconds each.
@pytest.mark.parametrize(
    "logger", ["wandb", *(pytest.param(k, marks=pytest.mark.processes) for k in ("mlflow", "tensorboard"))]
)
def test_the_environments_secrets_reach_no_file(command, call, tmp_path, monkeypatch, logger):
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    table(tmp_path / "t.csv", {"a": 20, "b": 20, "c": 20})
    assert command(*RUN, f"logger={logger}", "hydra.run.dir=run")[0] == 0
    assert command("-m", *RUN, f"logger={logger}", "tau=inf", "hydra.sweep.dir=sweep")[0] == 0
    assert call(report.main, "run", "sweep", "-o", tmp_path / "report")[0] == 0
    assert_none_in(tmp_path)


@pytest.mark.parametrize("sweep", [[], ["-m"]])
@pytest.mark.parametrize(
    "override",
    [
        "logger.tracking_uri=http://me:open-sesame-please@host/x",  # pragma: allowlist secret
        "logger.tracking_uri=postgresql://me:open-sesame/please@host/x",  # pragma: allowlist secret
        "data.path=https://open-sesame-please@host/t.csv",
        "logger.tracking_uri='${oc.env:HOME}'",
        "+logger.api_key=open-sesame-please",
        "password=open-sesame-please",
    ],
)
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(command, tmp_path, sweep, override):
    code, out, err = command(*sweep, *RUN, "tau=1,inf" if sweep else "tau=1", "logger=mlflow", override)
    assert code == 2
    assert err.startswith(f"bora: {override.lstrip('+').split('=')[0]}: ")
    assert err.count("\n") == 1
    assert "sesame" not in out + err
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and b"sesame" in f.read_bytes()]
    if "there is no such setting" not in err:
        assert "MLFLOW_TRACKING_PASSWORD, WANDB_API_KEY, HF_TOKEN" in err


def test_urls_without_secrets_are_fine(command):
    uri = "logger.tracking_uri=http://127.0.0.1:9/a@b"
    code, _, err = command(*RUN, "logger=mlflow", uri, "data.path=nowhere.csv")
    assert (code, "nowhere.csv" in err) == (2, True)
