"""Input that cannot be used is refused in one line that says what is wrong, where, and what to do."""

import re
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

import bora
from bora.commands.common import read_texts
from bora.data.columns import Columns
from bora.data.read import read_documents
from bora.errors import UserError
from tests.data.inputs import GOOD, PACKED, corpus_of, data_group, docs, named, to_csv, to_json, to_parquet, zipped

MAX_LINE_CHARS = 600
TEXTS = [text for _, text in GOOD]
MANY = to_csv(docs("a", 900))


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def wider(*more: str) -> list[tuple[str, ...]]:
    return [(*row, *more) for row in GOOD]


def changed_parquet() -> bytes:
    """Return a file with checksums, in which a letter of a text has changed."""
    table, out = pa.table({"task": ["a"] * 8, "text": TEXTS}), pa.BufferOutputStream()
    pa.parquet.write_table(table, out, compression="NONE", use_dictionary=False, write_page_checksum=True)
    return out.getvalue().to_pybytes().replace(b"return 2", b"return 4")


NOT_TEXT = pa.array([b"\xff"]).view(pa.string())  # bytes that claim to be text
DAMAGED = "; it is damaged, not of the type that its ending says, or you may not read it$"
# What is wrong: file, its bytes (None for no such file), the message after the setting's name.
READING = {
    "no such file": ("t.csv", None, r"^data.path=t.csv: there is no such file \(seen from /"),
    "an unknown ending": ("t.xlsx", to_csv(), "^data.path=t.xlsx: the ending '.xlsx' is not one of .csv, .tsv"),
    "Latin-1": ("t.csv", b"task,text\na,caf\xe9\n", r"t.csv: line 2 is not UTF-8 \(byte 0xe9\); save it as UTF-8$"),
    "Latin-1 far down, packed": ("t.csv.gz", PACKED["gz"](to_csv(docs("a", 5000)) + b"a,\xe6\n"), "line 5002 is not"),
    "Latin-1 in JSON": ("t.jsonl", b'{"task": "a", "text": "caf\xe9"}\n', "line 1 is not UTF-8"),
    "UTF-16": ("t.csv", to_csv().decode().encode("utf-16"), "line 1 is not UTF-8 .* save it as UTF-8$"),
    "half a surrogate pair": ("t.jsonl", b'{"task": "a", "text": "\\ud83d"}\n', "no text in row 0 .*surrogate"),
    "not UTF-8 in Parquet": ("t.parquet", to_parquet(task=["a"], text=NOT_TEXT), "no text in row 0 .*0xff"),
    "an empty file": ("t.csv", b"", "the table has no columns$"),
    "a header alone": ("t.csv", b"task,text\n", "^data.path=t.csv: there are no rows$"),
    "a quote never closed": ("t.csv", b'task,text\na,one\nb,"two\nc,three\n', "line 3: a quote is opened and never"),
    "text after a quote": ("t.csv", to_csv() + b'a,"one" two\n', "begins in line 10: text after a closing quote. Doub"),
    "a quote too many twice": ("t.csv", b'task,text\na,"one\nb,"two\nc,three\n', "begins in line 2: text after"),
    "a row with more cells": ("t.csv", to_csv() + b"a,b,c\n", "line 10 has 3 cells and the header 2; put a cell that"),
    "a row with fewer cells": ("t.csv", to_csv(wider("x"), ("task", "text", "n")) + b"a,b", "line 10 has 2 cells"),
    "semicolons": ("t.csv", to_csv(separator=";"), "'task;text'; .* separated by ';': save it with commas"),
    "no column of texts": ("t.csv", to_csv(header=("task", "said")), "^data.text=text: there is no .* has task, said$"),
    "two columns of texts": ("t.csv", to_csv(wider("x"), ("task", "text", "text")), "^data.text=.*; rename them$"),
    "a header of 200,000 characters": ("t.csv", b"x" * 200_000, "the table has x{300}$"),
    "a terminal's escape in a name": ("t.csv", to_csv([*GOOD, ("\x1b[31mred", "c")]), r"'\\x1b\[31mred' in row 8 "),
    "a broken line of JSON": ("t.jsonl", to_json(named()) + b'{"task": "a", "text"\n', r"line 9 is not JSON \(Exp"),
    "a JSON array": ("t.jsonl", to_json([named()]), "line 1 is not a JSON object; give one object a line$"),
    "a JSON key twice": ("t.jsonl", b'{"task": "a", "text": "b", "text": "c"}\n', "key 'text' is given more than once"),
    "a list in JSON": ("t.jsonl", to_json([*named(), {"task": "a", "text": ["b"]}]), "in row 8 .*, not a list$"),
    "lists in Parquet": ("t.parquet", to_parquet(task=["a"], text=[["b"]]), "'text' holds no text in row 0 .* a list$"),
    "Parquet with a letter changed": ("t.parquet", changed_parquet(), DAMAGED),
    "half a Parquet file": ("t.parquet", half(to_parquet(task=["a"], text=["b"])), DAMAGED),
    **{f"half of .{end}": (f"t.csv.{end}", half(pack(MANY)), DAMAGED) for end, pack in PACKED.items()},
    **{f"plain text called .{end}": (f"t.csv.{end}", to_csv(), DAMAGED) for end in PACKED},
    "two tables in .zip": ("t.csv.zip", zipped(("a", b""), ("b", b"")), "holds 2 files; it must hold one table$"),
}


def hold(told: pytest.ExceptionInfo, said: str) -> str:
    """Assert that an error's message is one readable line that matches `said`."""
    line = str(told.value)
    assert re.search(said, line), line
    assert line.isprintable()
    assert len(line) < MAX_LINE_CHARS
    return line


@pytest.mark.parametrize(("file", "content", "said"), READING.values(), ids=READING)
def test_a_file_is_refused_to_both_callers_in_one_line(file, content, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(file).write_bytes(content)
    with pytest.raises(UserError) as told:
        read_documents(data_group(path=file))
    line = hold(told, said)
    with pytest.raises(UserError) as told:
        read_texts(Path(file), Columns())
    for setting, flag in (("path=", "data "), ("task=", "task "), ("text=", "text ")):
        line = line.replace(f"data.{setting}", f"--{flag}")
    assert str(told.value) == line


def test_errors_name_columns_and_folders_by_the_callers_setting_or_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_bytes(to_csv())
    with pytest.raises(UserError, match=r"^data.date=day: there is no such column; the table has task, text$"):
        read_documents(data_group(path="t.csv", date="day"))
    with pytest.raises(UserError, match=r"^--task who: there is no such column; the table has task, text$"):
        read_texts(Path("t.csv"), Columns("who"))
    with pytest.raises(UserError, match=r"^--data \.: that is not a regular file"):
        read_texts(Path(), Columns())
    with pytest.raises(UserError, match=r"^data=frame is for bora\.fit in Python; here give data=table"):
        read_documents(data_group("frame"))


def dated(*dates: str) -> bytes:
    """Return a table with these dates in its first rows, of task a, and good ones after."""
    days = [*dates, *(f"2001-02-{day:02d}" for day in range(1, 9 - len(dates)))]
    return to_csv([(*row, day) for row, day in zip(GOOD, days, strict=True)], ("task", "text", "date"))


BAD_DATES = ["03/02/2001", "now", "2001-02-30", "981158400", "12345-01-01"]
NAMELESS = to_csv([("", text) for text in TEXTS])
ALL_DIFFERENT = to_csv([(f"t{i}", f"x{i}") for i in range(30)])
NO_DATE = "^1 of 8 documents have no date of the form .*row 0: "
BY_DATE = {"split": {"method": "date"}}
BUILDING = {
    **{f"the date {date}": (dated(date), BY_DATE, f"{NO_DATE}'{date}'") for date in BAD_DATES},
    "no date": (dated("", "", "", ""), {"selection": "chronological"}, r"4 of 4 .*name the column with data.date"),
    "no name anywhere": (NAMELESS, {}, "the largest has 0; dropped: 8 without a task.*at the columns data.task and"),
    "as many tasks as documents": (ALL_DIFFERENT, {}, r"no task has between 3 and ∞ documents \(the largest has 1\)"),
    "all too short": (to_csv(), {"min_characters": 1000}, "dropped: 8 of 1000 characters or fewer.*look at"),
    "caps for other tasks": (to_csv(), {"documents_per_task": [3, 3, 3]}, "lists 3 numbers, but there are 2 tasks"),
    "a task of one document": (to_csv([*GOOD, ("c", "x")]), {"min_documents": 1}, "'c' is left with 1 training, 0 val"),
    "no room behind a prompt": (to_csv(), {"prompt": "word " * 200}, "dropped: 8 without a token to .*raise data.max_"),
}


@pytest.mark.parametrize(("content", "options", "said"), BUILDING.values(), ids=BUILDING)
def test_a_table_that_cannot_be_trained_on_is_refused_in_one_line(content, options, said, tmp_path):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError) as told:
        corpus_of(data_group(path=str(tmp_path / "t.csv"), **options))
    hold(told, said)


def frame(rows: list[tuple[str, str]] = GOOD) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["task", "text"])


FRAMES = {
    "a list": ([1, 2], "takes a pandas or Polars DataFrame or an Arrow table, not list"),
    "a column": (pa.chunked_array([[1]]), "or an Arrow table, not ChunkedArray"),
    "no rows": (frame([]), "^the frame: there are no rows"),
    "no column of texts": (frame().rename(columns={"text": "said"}), "^text=text: there is no such column"),
}


@pytest.mark.parametrize(("given", "said"), FRAMES.values(), ids=FRAMES)
def test_a_frame_is_refused_in_one_line(given, said, tmp_path):
    with pytest.raises(UserError) as told:
        bora.fit(given, min_documents=3, output=tmp_path / "run")
    hold(told, said)


def saved(path: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"task": ["a"], "text": ["b"]})}).save_to_disk(path)


def holding(name: str, data: bytes) -> object:
    return lambda path: (path.mkdir(), (path / name).write_bytes(data))


DATASETS = {
    "no such folder": (lambda path: None, {}, "^data.path=./d: no dataset could be loaded"),
    "no such split": (saved, {"split_name": "dev"}, "^data.split_name=dev: .* has the splits train; or give all$"),
    "no such column": (holding("t.csv", to_csv()), {"text": "said"}, "^data.text=said: there is no .* has task, text$"),
    "a broken CSV": (holding("t.csv", b"task,text\na,b\na,b,c,d\n"), {}, r"no dataset could be loaded \(\w+: .*line 3"),
}


@pytest.mark.parametrize(("write", "options", "said"), DATASETS.values(), ids=DATASETS)
def test_a_dataset_is_refused_in_one_line(write, options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "d")
    with pytest.raises(UserError) as told:
        read_documents(data_group("datasets", path="./d", **options))
    hold(told, said)
