"""What uses a run is written whole or not at all, as on a disk that is full."""

import resource
import signal

import pytest

from bora.use import adapt, evaluate, export
from tests.conftest import table

SMALL = [
    "data=table",
    "data.path=t.csv",
    "data.min_documents=5",
    "data.max_tokens=16",
    "data.drop_duplicates=false",
    "trainer.max_steps=1",
    "lora.rank=4",
    "logger=none",
    "tau=10",
    "hydra.run.dir=run",
]


@pytest.fixture
def full():
    """Set the largest size of a file, after which writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [2_000, 20_000])
def test_what_is_written_when_the_disk_is_full_spoils_nothing(command, call, tmp_path, full, size):
    table(tmp_path / "t.csv", {"a": 20, "b": 20, "c": 20})
    assert command(*SMALL)[0] == 0
    data = "--data", "t.csv"
    assert call(evaluate.main, "run", *data)[0] == 0
    before = {f: f.read_bytes() for f in (tmp_path / "evaluation").iterdir()}
    told = 0
    for main, arguments in (
        (export.main, ["run", "exported"]),
        (adapt.main, ["run", "adapted", *data]),
        (evaluate.main, ["run", *data]),
    ):
        full(size)
        code, _, err = call(main, *arguments)
        full(resource.RLIM_INFINITY)
        assert code in ((1, 2) if err else (0,)), err
        assert "Traceback" not in err
        told += err.startswith("bora: ") and err.count("\n") == 1
        if main is evaluate.main and code:
            assert {f: f.read_bytes() for f in (tmp_path / "evaluation").iterdir()} == before
    assert told >= 1
    for main, arguments in ((export.main, ["run", "exported"]), (adapt.main, ["run", "adapted", *data])):
        if not any((tmp_path / arguments[1]).glob("*")):
            assert call(main, *arguments)[0] == 0
