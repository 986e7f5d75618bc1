"""Bad data of some size."""

import json

import pytest

from bora.data.tokens import LONGEST
from tests.bad_data.accounted_cases import Accounted
from tests.bad_data.inputs import GOOD, RUN, docs, to_csv
from tests.bad_data.test_accounted import hold

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("word", ["def f(x): return x\n", "水"])
def test_the_longest_cell(command, tmp_path, word):
    text = word * (LONGEST // len(word))
    (tmp_path / "t.csv").write_bytes(to_csv([*GOOD, ("a", text)]))
    code, _, err = command(*RUN, "data.path=t.csv")
    assert (code, err) == (0, "")
    hold(Accounted("", b"", [*GOOD, ("a", text)]), tmp_path / "run")


def test_5000_tasks_of_3_documents(command, tmp_path):
    rows = [row for i in range(5000) for row in docs(f"task {i}", 3)]
    (tmp_path / "t.csv").write_bytes(to_csv(rows))
    code, out, err = command(*RUN, "data.path=t.csv", "data.n_tasks=null")
    assert (code, err) == (0, "")
    hold(Accounted("", b"", rows), tmp_path / "run")
    assert json.loads((tmp_path / "run/summary.json").read_text("utf-8"))["n_tasks"] == 5000
    assert out.count("task ") >= 5000


def test_200000_tasks_of_one_document(command, tmp_path):
    (tmp_path / "t.csv").write_bytes(to_csv([*GOOD, *((f"task {i}", f"text {i}") for i in range(200_000))]))
    code, _, err = command(*RUN, "data.path=t.csv")
    assert (code, err) == (0, "")
    hold(
        Accounted("", b"", [*GOOD, *["of tasks outside the bounds on documents"] * 200_000]), tmp_path / "run"
    )
