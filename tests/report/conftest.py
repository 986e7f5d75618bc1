"""A sweep of known numbers, and the command that reports it."""

from functools import partial

import pytest

import bora.commands.report
from tests.report.runs import KNOWN, write_run


@pytest.fixture
def sweep(tmp_path):
    for tau in KNOWN:
        for seed, shift in ((0, 0.0), (1, 0.2)):
            write_run(tmp_path / f"s/tau={tau:g},seed={seed}", tau, seed, shift)
    return tmp_path / "s"


@pytest.fixture
def report(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    return partial(call, bora.commands.report.main, "-o", "report")  # a later -o replaces it
