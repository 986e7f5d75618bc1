"""No secret of the environment or the config reaches a file of a run, or the terminal."""

import os
import socket
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bora.redaction import MARK, redacted, redacted_words, redacted_yaml
from bora.results.run_directory import RunDirectory
from tests.conftest import table

# Made of the names, so that a scan of the repository finds no secret here.
NAMES = (
    "WANDB_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "AWS_SECRET_ACCESS_KEY",
)
ENVIRONMENT = {name: f"value+of/{name}=" for name in NAMES}
IN_CONFIG = {"userinfo": "colon:at@end-7", "bare": 3 * "bare-7", "query": 3 * "query-7", "key": 3 * "key-7"}
SECRETS = [*ENVIRONMENT.values(), *IN_CONFIG.values(), "at@end-7"]
OVERRIDES = [
    f"+logger.url='https://me:{IN_CONFIG['userinfo']}@127.0.0.1:9/x'",
    f"+logger.other='http://{IN_CONFIG['bare']}@127.0.0.1:9/x'",
    f"+logger.signed='http://127.0.0.1:9/x?a=1&api_key={IN_CONFIG['query']}&b=2'",
    f"+logger.api_key={IN_CONFIG['key']}",
    "+logger.list=['${oc.env:HF_TOKEN}']",
    "+logger.note='sent by ${oc.env:WANDB_API_KEY}'",
]  # fmt: skip
SMALL = [
    "data=table", "data.path=t.csv", "data.min_documents=5", "data.max_tokens=16", "data.drop_duplicates=false",
    "trainer.max_epochs=1", "lora.rank=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in os.environ:  # the machine's own, if there are any
        if name.upper().endswith(("_KEY", "TOKEN", "PASSWORD", "SECRET")):
            monkeypatch.delenv(name)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    table(tmp_path / "t.csv", {"a": 20, "b": 20})


def without_secrets(folder: Path, *printed: str) -> int:
    """Hold every file below the folder, and what was printed, to holding none; how many files."""
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != "t.csv"]
    for secret in SECRETS:
        # As it is, and as JSON, YAML and SQL have it.
        forms = {
            secret,
            secret.replace("/", "\\/"),
            secret.replace("+", "\\u002b"),
            secret.replace("'", "''"),
        }
        for form in forms:
            assert not [f for f in files if form.encode() in f.read_bytes()], form
            assert not [text for text in printed if form in text], form
    return len(files)


@pytest.mark.parametrize("logger", ["wandb", "mlflow", "none"])
def test_no_secret_reaches_a_file_or_the_terminal(command, tmp_path, logger):
    run = [*SMALL, "tau=10", f"logger={logger}", *OVERRIDES, "hydra.run.dir=run"]
    code, out, err = command(*run)
    assert code == 0
    assert without_secrets(tmp_path, out, err) > 8
    kept = OmegaConf.load(tmp_path / "run/config.yaml").logger
    assert kept.url == f"https://me:{MARK}@127.0.0.1:9/x"
    assert kept.signed == f"http://127.0.0.1:9/x?a=1&api_key={MARK}&b=2"
    assert (kept.api_key, list(kept.list), kept.note) == (MARK, [MARK], f"sent by {MARK}")
    assert f"api_key={MARK}" in (tmp_path / "run/.hydra/overrides.yaml").read_text()
    # The same command finds its run again; another user, password kept, is another setting.
    code, out, err = command(*run)
    assert (code, "finished already" in out + (tmp_path / "run/run.log").read_text()) == (0, True)
    other = [r.replace("//me:", "//you:") for r in run]
    code, out, err = command(*other)
    assert (code, "other settings (logger.url)" in err) == (2, True)
    without_secrets(tmp_path, out, err)


def test_a_sweep_keeps_none_either(command, tmp_path):
    code, out, err = command("-m", "tau=0,inf", *SMALL, "logger=none", "name=s", *OVERRIDES)
    assert code == 0
    assert {f.parent.name for f in tmp_path.glob("multirun/s/*/summary.json")} == {
        "tau=0,seed=0",
        "tau=inf,seed=0",
    }
    assert MARK in (tmp_path / "multirun/s/multirun.yaml").read_text()
    without_secrets(tmp_path, out, err)


@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_errors_tell_none(command, tmp_path, sweep):
    with socket.socket() as closed:  # a port that nobody listens at
        closed.bind(("127.0.0.1", 0))
        uri = f"http://me:{IN_CONFIG['userinfo']}@127.0.0.1:{closed.getsockname()[1]}"
        run = [
            *sweep,
            *SMALL,
            "logger=mlflow",
            f"logger.tracking_uri='{uri}'",
            "tau=1",
            "name=s",
            "hydra.run.dir=run",
        ]
        code, out, err = command(*run)
    assert code == 2
    assert f"logger.tracking_uri=http://me:{MARK}@127.0.0.1" in err
    without_secrets(tmp_path, out, err)
    for wrong in (
        f"data.pth='{uri}'",
        f"tau={uri}",
        f"data.path='{uri}'",
        f"+logger.api_key=[{IN_CONFIG['key']}",
    ):
        code, out, err = command(*SMALL, wrong)
        assert (code, err.count("\n")) == (2, 1)
        without_secrets(tmp_path, out, err)


def test_a_config_without_its_secrets_asks_for_them(command, tmp_path):
    assert command(*SMALL, "logger=none", *OVERRIDES[:1], "hydra.run.dir=a")[0] == 0
    again = ["--config-path", str(tmp_path / "a"), "--config-name", "config", "hydra.run.dir=b"]
    code, _, err = command(*again)
    assert (code, err.count("\n")) == (2, 1)
    assert "logger.url: a secret stood there, which config.yaml does not keep; give logger.url=… again" in err
    assert command(*again, OVERRIDES[0].lstrip("+"))[0] == 0
    assert not RunDirectory(tmp_path / "a").differences(OmegaConf.load(tmp_path / "b/config.yaml"))


@pytest.mark.parametrize(
    "text",
    [
        "tokens/s: 33, n_tokens: 4", "data.max_tokens=24", "max_tokens: 24", "https://host:8080/a@b", "ssh://git@host/x",
        "me@host.no", "a: b:c@d", "sqlite:////tmp/mlflow.db", "token: null", "https://host/x?page=2", "",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text):
    assert redacted(text) == redacted_yaml(text) == redacted_words(text) == text


def test_a_second_time_changes_nothing():
    for text in [*OVERRIDES, "  password: a b c", *SECRETS]:
        once = redacted_words(redacted_yaml(text))
        assert redacted_words(redacted_yaml(once)) == once
    assert redacted({"a": {"api_key": 5, "tokens": 5}, "b": [OVERRIDES[0]], "password": None}) == {
        "a": {"api_key": MARK, "tokens": 5},
        "b": [f"+logger.url='https://me:{MARK}@127.0.0.1:9/x'"],
        "password": None,
    }


def test_a_prompt_is_no_command_line(command, tmp_path):
    """What decides the tokens is kept to the letter, whatever it looks like."""
    prompt = "data.prompt=' password={task} token: x'"
    assert command(*SMALL, "logger=none", prompt, "hydra.run.dir=a")[0] == 0
    assert OmegaConf.load(tmp_path / "a/config.yaml").data.prompt == " password={task} token: x"
