"""Input that cannot be used ends in exit code 2 and one line that says what, where, and what to do."""

import re

import pandas as pd
import pytest

import bora
from bora.errors import UserError
from tests.bad_data import refused_contents as contents
from tests.bad_data import refused_files as files
from tests.bad_data.inputs import GOOD, RUN, each, frame, put

LONGEST = 600  # characters that a person still reads, a path's not counted
GROUPS = {
    "encoding": files.ENCODINGS,
    "table": files.TABLES,
    "JSON and Parquet": files.JSON_AND_PARQUET,
    "archive": files.ARCHIVES,
    "dataset": files.DATASETS,
    "date": contents.DATES,
    "task": contents.TASKS,
    "text": contents.TEXTS,
}


@each(GROUPS)
def test_it_is_told_in_one_line(case, command, capfd, tmp_path):
    put(case, tmp_path)
    capfd.readouterr()  # what writing a dataset shows
    code, _, err = command(*RUN, f"data.path={case.file}", *case.options)
    assert (code, err.count("\n")) == (2, 1), err
    line = err.removesuffix("\n")
    assert line.startswith("bora: ")
    assert line.isprintable()
    assert len(line.replace("x" * 100, "")) < LONGEST
    assert re.search(case.said, line), line
    assert not (tmp_path / "run/documents.csv").exists()


def with_text(value: object) -> pd.DataFrame:
    return pd.concat([frame(), pd.DataFrame({"task": ["a"], "text": [value]})], ignore_index=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        pytest.param([1, 2], "takes a pandas or Polars DataFrame or an Arrow table, not list", id="a list"),
        pytest.param(frame([]), "the frame holds no rows", id="no rows"),
        pytest.param(frame().rename(columns={"text": "said"}), "data.text=text", id="no column of texts"),
        pytest.param(pd.concat([frame(), frame()[["text"]]], axis=1), "column 'text'; rename", id="two columns"),
        pytest.param(with_text(["b", "c"]), "column 'text' holds a list in row 8", id="a list as text"),
        pytest.param(with_text({"b": 1}), "holds a dict in row 8", id="a dictionary as text"),
        pytest.param(with_text(b"bytes"), "holds a bytes in row 8", id="bytes as text"),
        pytest.param(frame().astype(object).replace(GOOD[3][1], "\ud83d"), "surrogate pair in row 3", id="half an emoji"),
        pytest.param(frame().replace("b", "b\x07"), r"'b\\x07' in row 4", id="a bell in a name"),
        pytest.param(frame().assign(text=" "), "dropped: 8 empty", id="white space alone"),
    ],
)  # fmt: skip
def test_a_frame_is_told_in_one_line(given, said, tmp_path):
    with pytest.raises(UserError, match=said) as told:
        bora.fit(given, "data.min_documents=3", output=tmp_path / "run")
    assert str(told.value).isprintable()
    assert len(str(told.value)) < LONGEST
