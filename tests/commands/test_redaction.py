"""No secret of the environment or the config reaches a file of a run, or the terminal."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bora.commands import doctor, report
from bora.lib.redaction import MARK, redacted, redacted_words
from bora.runs.directory import RunDirectory
from bora.use import adapt, evaluate, export, generate
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
    overrides = OmegaConf.load(tmp_path / "run/.hydra/overrides.yaml")
    assert {f"+logger.api_key={MARK}", f"+logger.url='{MARK}'"} <= set(overrides)
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
        "--max-new-tokens 0",
        "tokens/s: 33, n_tokens: 4", "data.max_tokens=24", "max_tokens: 24", "https://host:8080/a@b", "ssh://git@host/x",
        "me@host.no", "a: b:c@d", "sqlite:////tmp/mlflow.db", "token: null", "https://host/x?page=2", "",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text):
    assert redacted(text) == redacted_words(text) == text


def test_a_second_time_changes_nothing():
    for text in [*OVERRIDES, *SECRETS]:
        once = redacted_words(text)
        assert redacted_words(once) == once
    assert redacted({"a": {"api_key": 5, "tokens": 5}, "b": [OVERRIDES[0]], "password": None}) == {
        "a": {"api_key": MARK, "tokens": 5},
        "b": [f"+logger.url='https://me:{MARK}@127.0.0.1:9/x'"],
        "password": None,
    }


@pytest.mark.parametrize(
    "key",
    [
        "api_key",
        "private_key",
        "passphrase",
        "credentials",
        "token",
        "PGPASSWORD",
        "accessToken",
        "clientSecret",
        "api-key",
        "passwords",
        "secrets",
        "tokens",
        "auth",
        "Authorization",
        "db_pass",
        "pwd",
        "wandb_key",
        "github_pat",
        "private_key_pem",
        "password_hash",
        "secrets.a",
        "OPENAI_KEY",
    ],
)
@pytest.mark.parametrize("value", ["a: b", 3.5, True, ["a", "b"], {"a": "b"}])
def test_all_that_stands_under_a_secrets_key_is_one(key, value):
    if key == "tokens" and isinstance(value, (int, float)):
        return  # they are counted
    assert redacted({"x": {key: value}}) == {"x": {key: MARK}}


@pytest.mark.parametrize(
    "key",
    ["key", "sort_key", "n_tokens", "max_tokens", "password_file", "token_path", "exclude_keys", "compass"],
)
def test_what_stands_under_others_is_none(key):
    assert redacted({"x": {key: "a b"}}) == {"x": {key: "a b"}}


def test_what_an_experiment_is_made_of_stays_whatever_the_environment_has(monkeypatch):
    for name, value in (("DB_PASS", "document"), ("X_AUTH", "noncentered"), ("Y_TOKEN", "bucketed")):
        monkeypatch.setenv(name, value)
    kept = {
        "data": {"text": "document", "order": "bucketed", "reader": {"text": "document"}},
        "prior": {"estimator": "by_document", "parameterization": "noncentered"},
    }
    assert redacted(kept) == kept


@pytest.mark.parametrize("option", [["--password=SECRET"], ["--password SECRET"], ["--password", "SECRET"]])
@pytest.mark.parametrize(
    "main", [evaluate.main, export.main, adapt.main, report.main, doctor.main, generate.main]
)
def test_an_option_that_there_is_not_is_told_without_what_it_was_given(call, command, main, option):
    option = [word.replace("SECRET", IN_CONFIG["key"]) for word in option]
    for code, out, err in (call(main, "run", *option), command(*option)):
        assert code == 2
        without_secrets(Path.cwd(), out, err)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:pa/ss#w?rd@db/x", f"postgresql://me:{MARK}@db/x"),
        ("mysql://me:pa ss@db", f"mysql://me:{MARK}@db"),
        ("redis://:p@ss@db", f"redis://:{MARK}@db"),
        ("https://me@corp.com:word@host/x", f"https://{MARK}@corp.com:{MARK}@host/x"),
        ("HTTPS://word@host", f"HTTPS://{MARK}@host"),
        ("https://host/x?sv=1&sig=ab%3D&b=2", f"https://host/x?sv=1&sig={MARK}&b=2"),
        ("https://host/x?X-Amz-Signature=ab", f"https://host/x?X-Amz-Signature={MARK}"),
        ("https://host/x#access_token=ab", f"https://host/x#access_token={MARK}"),
        ("https://me:a/b#c@host/x@y", f"https://me:{MARK}@host/x@y"),
        ("jdbc:x://host;user=me;password=ab", f"jdbc:x://host;user=me;password={MARK}"),
        ("mssql:///?odbc=UID%3Dme%3BPWD%3Dab%3BX%3D1", f"mssql:///?odbc=UID%3Dme%3BPWD%3D{MARK}%3BX%3D1"),
    ],
)
def test_passwords_in_urls(url, shown):
    assert redacted({"uri": url}) == {"uri": shown}
    if " " not in url:
        assert redacted_words(f"cannot reach '{url}' now") == f"cannot reach '{shown}' now"


@pytest.mark.parametrize(
    "text", ["+logger.api_key=[one,two]", "+logger.x={user:me,api_key:one}", "{'passphrase': 'one', 'b': 2}"]
)
def test_errors_that_repeat_a_config(text):
    assert not any(secret in redacted_words(f"cannot read {text}") for secret in ("one", "two"))


HIDDEN = 2 * "hidden-7"  # stands in each of these, and in no file
FORMS = [
    f"+logger.x={{api_key:{HIDDEN},user:me}}",
    f"+logger.api_key=[{HIDDEN},b{HIDDEN}]",
    f"+logger.passphrase='long: {10 * 'word '}{10 * HIDDEN}'",
    f"+logger.private_key='-----BEGIN\n{HIDDEN}\n-----END'",
    f"+logger.db='postgresql://me:pa/ss {HIDDEN}@db'",
    f"+logger.mail='https://me@corp.com:{HIDDEN}@host'",
    f"+logger.accessToken={HIDDEN}",
    f"+secrets.of.mine={HIDDEN}",
    f"+tokens=[{HIDDEN},b{HIDDEN}]",
    f"+logger.headers={{Authorization:'Bearer {HIDDEN}'}}",
    "+logger.pass='${oc.env:DB_PASS}'",
    "+logger.note='by ${oc.env:AWS_SECRET_ACCESS_KEY} and ${oc.env:HF_TOKEN} and ${oc.env:PGPASSWORD}'",
]


@pytest.fixture
def hidden(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"/{HIDDEN}")  # not the name of a file
    monkeypatch.setenv("HF_TOKEN", f"it's: {HIDDEN}\n")
    monkeypatch.setenv("PGPASSWORD", f"C{HIDDEN}")
    monkeypatch.setenv("DB_PASS", f"{HIDDEN} of a database")
    monkeypatch.setattr("tests.test_redaction.SECRETS", [HIDDEN])


@pytest.mark.parametrize(
    "how", [["logger=wandb", "hydra.run.dir=run"], ["-m", "sweep=joblib", "logger=none", "name=s"]]
)
def test_whatever_form_a_secret_has(command, tmp_path, hidden, how):
    code, out, err = command(*how, *SMALL, "tau=1", *FORMS)
    assert code == 0
    assert without_secrets(tmp_path, out, err) > 8
    (kept,) = tmp_path.rglob("tau=1*/config.yaml" if "-m" in how else "run/config.yaml")
    logger = OmegaConf.load(kept).logger
    assert logger.x == {"api_key": MARK, "user": "me"}
    assert (logger.db, logger.private_key) == (f"postgresql://me:{MARK}@db", MARK)


def test_secrets_of_a_config_file_stay_there(command, tmp_path, tmp_path_factory, hidden):
    """None of them came by the command line, and a saved config has no settings of Hydra's."""
    assert command(*SMALL, "logger=none", "hydra.run.dir=run")[0] == 0
    config = OmegaConf.load(tmp_path / "run/config.yaml")
    config.logger = {**config.logger, "api_key": HIDDEN, "url": f"https://{HIDDEN}@host"}
    mine = tmp_path_factory.mktemp("mine")
    OmegaConf.save(config, mine / "config.yaml")
    for how in (["hydra.run.dir=again"], ["-m", "hydra.sweep.dir=s", "tau=1,2"]):
        code, out, err = command("--config-path", str(mine), "--config-name", "config", *how)
        assert code == 0
        assert without_secrets(tmp_path, out, err) > 8
    assert MARK in (tmp_path / "s/multirun.yaml").read_text()


@pytest.mark.parametrize(
    "swept", ["+logger.api_key=KEY,other", "+logger.url='https://KEY@h',b", "+x={token:KEY},1"]
)
def test_secrets_are_not_swept(command, tmp_path, swept):
    code, out, err = command("-m", *SMALL, "tau=1", "name=s", swept.replace("KEY", IN_CONFIG["key"]))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"bora: {swept.split('=')[0]} holds a secret, and the folders of a sweep")
    assert not (tmp_path / "multirun").exists()
    without_secrets(tmp_path, err)


def test_texts_of_the_experiment_are_kept_to_the_letter(command, tmp_path):
    template, prompt = "user: x\ntoken: {text}", "see https://x:y@z/?token={task} "
    texts = [f"data.template='{template}'", f"data.prompt='{prompt}'"]
    run = [*SMALL, "data.max_tokens=48", "logger=none", *texts, "hydra.run.dir=a"]
    assert command(*run)[0] == 0
    kept = OmegaConf.load(tmp_path / "a/config.yaml").data
    assert (kept.template, kept.prompt) == (template, prompt)
    assert set(texts) <= set(OmegaConf.load(tmp_path / "a/.hydra/overrides.yaml"))


def test_a_secret_that_is_also_a_harmless_word(command, tmp_path, monkeypatch):
    """Keys, numbers and what names the model and the data are no place for secrets."""
    for name, value in {
        "GPG_PASSPHRASE": "template",
        "JUPYTER_TOKEN": "opt_mini",
        "HF_TOKEN": "12345678",
    }.items():
        monkeypatch.setenv(name, value)
    run = [*SMALL, "logger=none", "seed=12345678", "model=opt_mini", "hydra.run.dir=a"]
    assert command(*run)[0] == 0
    kept = OmegaConf.load(tmp_path / "a/config.yaml")
    assert (kept.model.path, kept.data.template, kept.seed) == ("opt_mini", "{text}", 12345678)
    assert command(*run)[0] == 0
    assert "finished already" in (tmp_path / "a/run.log").read_text()


def test_a_trace_tells_none(tmp_path):
    secret = IN_CONFIG["key"]
    done = subprocess.run(
        [sys.executable, "-m", "bora.commands.run", *SMALL, f"data.path='https://me:{secret}@h/x'", f"+logger.api_key={secret}"],
        cwd=tmp_path, env=os.environ | {"HYDRA_FULL_ERROR": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("Error executing job with overrides: ")
    assert "Traceback (most recent call last)" in done.stderr
    assert f"https://me:{MARK}@h/x" in done.stderr
    without_secrets(tmp_path, done.stdout, done.stderr)


def test_an_option_that_there_is_not(command, tmp_path):
    code, out, err = command("--nosuch", *SMALL, OVERRIDES[3])
    assert code == 2
    assert "unrecognized arguments: --nosuch" in err
    without_secrets(tmp_path, out, err)


@pytest.mark.skipif(importlib.util.find_spec("psycopg") is not None, reason="psycopg is installed")
def test_a_database_without_its_package(command, tmp_path):
    code, out, err = command(
        *SMALL, "logger=mlflow", f"logger.tracking_uri='postgresql+psycopg://me:{IN_CONFIG['key']}@h/x'"
    )
    assert code == 2
    assert (
        f"bora: logger.tracking_uri=postgresql+psycopg://me:{MARK}@h/x: MLflow lacks a package for it (No mod"
        in err
    )
    without_secrets(tmp_path, out, err)


def test_a_prompt_is_no_command_line(command, tmp_path):
    """What decides the tokens is kept to the letter, whatever it looks like."""
    prompt = "data.prompt=' password={task} token: x'"
    assert command(*SMALL, "logger=none", prompt, "hydra.run.dir=a")[0] == 0
    assert OmegaConf.load(tmp_path / "a/config.yaml").data.prompt == " password={task} token: x"
