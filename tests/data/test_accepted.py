"""Odd tables that can be read, each with all the cells that reading must return."""

import csv
import unicodedata
from datetime import UTC, datetime

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from bora.api.frames import documents
from bora.data import csv_file, huggingface
from bora.data.columns import Columns
from bora.data.table import read
from tests.data.inputs import GOOD, PACKED, named, to_csv, to_json, to_parquet, zipped

ODD = [
    "one\ntwo\r\nthree",
    "a lone\rreturn",
    'she said "yes, yes"',
    ",;\t|",
    "NUL \0 and bell \x07 and \x1a",
    "\ufeffmark",
    "e\u0301 is é",
    "👩‍👩‍👧 and \U0001f1f3\U0001f1f4",
    "\u2028 and \x85 and \x0c",
    "NA",
    "",
    " ",
    "x" * 200_000,
]
AS_THEY_ARE = [("a", text) for text in ODD]
NUMBERS = [(n, "x") for n in ("7", "007", "7.0", "1e3", "99999999999999999999", "NA", "null", "true")]
NFC, NFD = "José Ångström", unicodedata.normalize("NFD", "José Ångström")
GAPS = b'{"text": "x"}\n{"task": "a"}\n\n{"task": null, "text": NaN}\n'
FLOATS = to_parquet(task=[0.5, float("nan"), None], text=["x", None, "z"])
SINGLES = to_parquet(task=pa.array([2.1, 1e10], pa.float32()), text=["x", "y"])
INTEGERS = to_parquet(task=pa.array([2**53 + 1, None]), text=pa.array([b"x", "æ".encode()]))
# What is odd: file, its bytes, the rows to be read (task, text).
CASES = {
    "a byte order mark": ("t.csv", b"\xef\xbb\xbf" + to_csv(quoting=csv.QUOTE_ALL), GOOD),
    "Windows' line ends": ("t.csv", to_csv(ends="\r\n"), GOOD),
    "old line ends": ("t.csv", to_csv(ends="\r"), GOOD),
    "blank lines are no rows": ("t.csv", b"\n\n" + to_csv(ends="\n\n\r\n") + b"\n", GOOD),
    "every cell in quotes": ("t.csv", to_csv(AS_THEY_ARE, quoting=csv.QUOTE_ALL), AS_THEY_ARE),
    "the same in TSV": ("t.tsv", to_csv(AS_THEY_ARE, separator="\t", quoting=csv.QUOTE_ALL), AS_THEY_ARE),
    "the same in JSON": ("t.ndjson", to_json(named(AS_THEY_ARE)), AS_THEY_ARE),
    "the same in Parquet": ("t.parquet", to_parquet(task=["a"] * len(ODD), text=ODD), AS_THEY_ARE),
    "a quote within a cell": ("t.csv", to_csv() + b'a,a 5" pipe\n', [*GOOD, ("a", 'a 5" pipe')]),
    "other columns": ("t.csv", to_csv([(*row, "x", "y") for row in GOOD], ("rep_name", "text", "n", "n")), GOOD),
    **{f"packed as .{end}": (f"t.csv.{end}", pack(to_csv()), GOOD) for end, pack in PACKED.items()},
    "packed by macOS": ("t.csv.zip", zipped(("t.csv", to_csv()), ("__MACOSX/._t.csv", b"\0\5\26\7")), GOOD),
    "packed JSON, a capital ending": ("t.jsonl.XZ", PACKED["xz"](to_json(named())), GOOD),
    "numbers and marks of nothing as names": ("t.csv", to_csv(NUMBERS), NUMBERS),
    "numbers in JSON": ("t.jsonl", b'{"task": 1e3, "text": 0.10}', [("1e3", "0.10")]),
    "missing values in JSON": ("t.jsonl", GAPS, [("", "x"), ("a", ""), ("", "")]),
    "missing values in Parquet": ("t.parquet", FLOATS, [("0.5", "x"), ("", ""), ("", "z")]),
    "numbers of 32 bits in Parquet": ("t.parquet", SINGLES, [("2.1", "x"), ("10000000000.0", "y")]),
    "integers with gaps, and bytes, in Parquet": ("t.parquet", INTEGERS, [("9007199254740993", "x"), ("", "æ")]),
    "white space in names": ("t.csv", to_csv([(n, "x") for n in (" A  B ", "A\u00a0B")]), [("A B", "x")] * 2),
    "one name in two forms of Unicode": ("t.csv", to_csv([(NFD, "x"), (NFC, "y")]), [(NFC, "x"), (NFC, "y")]),
}


def cells(table: pd.DataFrame) -> list[tuple]:
    assert list(table) == ["task", "text", "date"]
    assert table.index.tolist() == list(range(len(table)))
    return list(table.itertuples(index=False, name=None))


@pytest.mark.parametrize(("file", "content", "rows"), CASES.values(), ids=CASES)
def test_every_cell_of_an_odd_table_is_read_unchanged(file, content, rows, tmp_path):
    (tmp_path / file).write_bytes(content)
    assert cells(read(tmp_path / file)) == [(*row, "") for row in rows]


def test_dates_are_read_if_there_is_such_a_column(tmp_path):
    days = [datetime(2001, 2, 3, tzinfo=UTC), None]
    (tmp_path / "t.parquet").write_bytes(
        to_parquet(task=["a", "b"], text=["x", "y"], date=pa.array(days, pa.timestamp("ms", "UTC")))
    )
    assert read(tmp_path / "t.parquet")["date"].tolist() == ["2001-02-03 00:00:00+00:00", ""]
    (tmp_path / "t.csv").write_bytes(to_csv([("a", "b", "2001", "x")], ("day", "task", "date", "text")))
    assert cells(read(tmp_path / "t.csv")) == [("b", "x", "2001")]
    assert cells(read(tmp_path / "t.csv", Columns(date="day"))) == [("b", "x", "a")]
    assert cells(read(tmp_path / "t.csv", Columns(task="day", text="task"))) == [("a", "b", "2001")]


NAN = float("nan")
# The tasks of a frame: its values, and the text they become.
FRAMES = {
    "categories": (pd.Categorical(["a", "b"]), ["a", "b"]),
    "nothing in all its forms": (pd.Series([NAN, None, pd.NA, pd.NaT, "a"], dtype=object), [*[""] * 4, "a"]),
    "numbers with gaps": (pd.array([7, None], dtype="Int64"), ["7", ""]),
    "numbers of 32 bits": (pd.Series([2.1, NAN], dtype="float32"), ["2.1", ""]),
    "of Arrow's": (pd.Series([2.1, None], dtype=pd.ArrowDtype(pa.float32())), ["2.1", ""]),
    "floats and booleans": (pd.Series([1.0, 0.1, True], dtype=object), ["1.0", "0.1", "true"]),
}


@pytest.mark.parametrize(("given", "tasks"), FRAMES.values(), ids=FRAMES)
def test_a_frames_values_become_text(given, tasks):
    frame = pd.DataFrame({0: given, 1: "x"}).set_axis([5] * len(tasks))  # column names are numbers, the index repeats
    assert cells(documents(frame, Columns("0", "1"))) == [(task, "x", "") for task in tasks]


def test_a_large_table_is_cached_and_read_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("BORA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "t.csv"
    path.write_bytes(to_csv([(*row, "2001") for row in AS_THEY_ARE], ("who", "said", "when"), quoting=csv.QUOTE_ALL))
    columns = Columns("who", "said", "when")
    monkeypatch.setattr(csv_file, "MAX_PART_ROWS", 3)
    small = read(path, columns)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(csv_file, "MIN_CACHED_BYTES", 0)
    pd.testing.assert_frame_equal(read(path, columns), small)
    with monkeypatch.context() as patch:
        patch.setattr(csv_file, "text_table", lambda *a: pytest.fail("read again"))
        pd.testing.assert_frame_equal(read(path, columns), small)
    other = read(path, Columns("when", "said"))  # other columns are cached as another table
    assert other["task"].tolist() == ["2001"] * len(ODD)
    path.write_bytes(path.read_bytes().replace(b"she said", b"he said"))
    assert read(path, columns)["text"][2] == 'he said "yes, yes"'


def test_labels_of_a_saved_dataset_name_its_tasks_and_splits_are_joined(tmp_path):
    labels = datasets.ClassLabel(names=["Zoë", "b/c"])
    features = datasets.Features({"who": labels, "said": datasets.Value("string"), "n": datasets.Value("int64")})
    rows = {"who": [0, 1, 0, -1, None], "said": ["one", "two", None, "four", "five"], "n": [1, 2, 3, 4, 5]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": whole, "test": whole.select([1])}).save_to_disk(tmp_path / "saved")
    path, said = str(tmp_path / "saved"), ["one", "two", "", "four", "five"]
    found = huggingface.read(path, "train", None, Columns("who", "said"))
    assert cells(found) == [(*row, "") for row in zip(["Zoë", "b/c", "Zoë", "", ""], said, strict=True)]
    assert huggingface.read(path, "test", None, Columns("n", "said"))["task"].tolist() == ["2"]
    assert huggingface.read(path, "all", None, Columns("who", "said"))["text"].tolist() == [*said, "two"]


CARD = "dataset_info:\n  features:\n  - {name: who, dtype: {class_label: {names: {'0': Zoë, '1': b/c}}}}\n"
CARD = f"---\n{CARD}  - {{name: said, dtype: string}}\n  - {{name: id, dtype: string}}\n---\n"


def test_a_folder_of_files_is_read_as_text_with_the_labels_that_its_card_declares(tmp_path):
    for name, content in (("csv/data.csv", b"who,said,id\n0,one,007\n1,NA,2\n"), ("json/t.jsonl", to_json(named()))):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    path = str(tmp_path / "csv")
    found = huggingface.read(path, "train", None, Columns("id", "said"))
    assert cells(found) == [("007", "one", ""), ("2", "NA", "")]
    (tmp_path / "csv/README.md").write_text(CARD, "utf-8")
    found = huggingface.read(path, "train", None, Columns("who", "said"))
    assert cells(found) == [("Zoë", "one", ""), ("b/c", "NA", "")]
    assert cells(huggingface.read(str(tmp_path / "json"), "train", None, Columns())) == [(*row, "") for row in GOOD]
