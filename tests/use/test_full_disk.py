"""Commands that use a run write their results completely or not at all, even on a full disk."""

import resource
import signal

import pytest

from bora.commands import adapt, evaluate, export
from tests.conftest import one_line


@pytest.fixture
def limit_file_size():
    """Set the largest size of a file, after which writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [2_000, 20_000])
def test_a_full_disk_leaves_earlier_files_unchanged_and_no_partial_ones(
    trained, call, tmp_path, limit_file_size, size, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run = trained("tau=100")
    data = "--data", run.parent / "t.csv"
    again = [run, *data, "--likelihoods", "csv", "--out", "evaluation"]
    assert call(evaluate.main, *again)[0] == 0
    before = {f: f.read_bytes() for f in (tmp_path / "evaluation").iterdir()}
    n_failed = 0
    for main, arguments in (
        (export.main, [run, "exported"]),
        (adapt.main, [run, "adapted", *data, "--epochs", "1"]),
        (evaluate.main, again),
    ):
        limit_file_size(size)
        found = call(main, *arguments)
        limit_file_size(resource.RLIM_INFINITY)
        if not found[0]:
            continue
        n_failed += 1
        one_line(found, code=min(found[0], 2))
        assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before
        if main is not evaluate.main:
            assert call(main, *arguments)[0] == 0
            before |= {f: f.read_bytes() for f in (tmp_path / arguments[1]).rglob("*") if f.is_file()}
    assert n_failed >= 1
