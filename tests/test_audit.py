"""The audit fails on what it finds, and never takes a check that was not made for one that was passed."""

import importlib.util
import json

import pytest

from tests.shown import REPOSITORY

CLEAN = {"name": "torch", "version": "2.13.0", "vulns": []}
BAD = {"name": "jinja2", "version": "2.10", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.11", "3"], "aliases": []}]}
UNKNOWN = {"name": "ours", "skip_reason": "Dependency not found on PyPI and could not be audited: ours (1)"}


@pytest.fixture
def audit():
    spec = importlib.util.spec_from_file_location("audit", REPOSITORY / ".ci/audit.py")
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    return audit


@pytest.fixture
def run(audit, monkeypatch, capsys):
    """Run the audit with what pip-audit and detect-secrets would say: exit code, and lines."""

    def with_answers(pypi, osv=None, secrets: str = "", *arguments: str) -> tuple[int, list[str]]:
        def call(tool: str, *words: str) -> tuple[int, str, str]:
            if tool.startswith("detect_secrets"):
                return int(bool(secrets)), secrets, ""
            answer = pypi if "pypi" in words else osv
            if answer is None:
                return 1, "", "Traceback …\nrequests.exceptions.ConnectionError: no such host\n"
            return int(any(p.get("vulns") for p in answer)), json.dumps({"dependencies": answer}), "Found …"

        monkeypatch.setattr(audit, "call", call)
        monkeypatch.setattr(audit, "tracked_files", list)
        code = audit.main(list(arguments))
        return code, capsys.readouterr().out.splitlines()

    return with_answers


def test_a_known_vulnerability_fails(run):
    code, lines = run([CLEAN, BAD])
    assert (code, lines[0]) == (1, "audit: jinja2 2.10: PYSEC-1, mended in 2.11, 3")
    assert run(None, [BAD])[0] == 1  # the second service is asked where the first is not there
    assert run([CLEAN])[0] == 0


@pytest.mark.parametrize("pypi", [None, [UNKNOWN, UNKNOWN]], ids=["no network", "another server"])
@pytest.mark.parametrize("osv", [None, []], ids=["no network", "nothing"])
def test_a_check_that_was_not_made_is_reported(run, pypi, osv):
    code, lines = run(pypi, osv)
    assert code == 0
    assert lines[0].startswith("NOT AUDITED: no known vulnerabilities were looked for, PyPI (")
    assert not any("held against" in line for line in lines)
    assert run(pypi, osv, "", "--strict")[0] == 3


def test_a_secret_fails_with_and_without_network(run):
    for pypi in (None, [CLEAN]):
        code, lines = run(pypi, None, "Secret Type: AWS Access Key\nLocation: x:1")
        assert (code, "Location: x:1" in lines) == (1, True)


def test_bare_tokens_of_our_users_are_found(audit, monkeypatch, tmp_path):
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    monkeypatch.setattr(audit, "call", lambda *words: (0, "", ""))
    for text, line in (
        (f"Log in with hf_{'aB3' * 11}x.", "Hugging Face token: notes.md:1"),
        (f"machine api.wandb.ai\n  login user\n  password {'0a1b2c3d' * 5}", "W&B key, as ~/.netrc has it: notes.md:3"),
        (f"hf_hub_download hf_token password {'0a' * 32}", "audit: no secret in 1 tracked files"),
    ):
        (tmp_path / "notes.md").write_text(text)
        assert audit.audit_secrets(["notes.md"])[1][0] == line
