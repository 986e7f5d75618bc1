"""Odd tables that can be read; each with every cell that comes of it."""

import csv
import json
import unicodedata
from datetime import UTC, datetime
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from bora.api import documents
from bora.data import csv_file
from bora.data.table import read
from tests.data.inputs import GOOD, PACKED, docs, named, to_csv, to_json, to_parquet, zipped

ODD = [
    "one\ntwo\r\nthree",
    "a lone\rreturn",
    'she said "yes, yes"',
    ",;\t|",
    "NUL \0 and bell \x07 and \x1a",
    "\ufeffmark",
    "مرحبا بالعالم",
    "e\u0301 is é",
    "👩‍👩‍👧 and \U0001f1f3\U0001f1f4",
    "\u2028 and \x85 and \x0c",
    "\\N \\n \\",
    "'",
    "NA",
    "0",
    "",
    " ",
    "x" * 200_000,
]
AS_THEY_ARE = [("a", text) for text in ODD]
NUMBERS = ["7", "007", "7.0", "1e3", "-0", "99999999999999999999", "NA", "nan", "null", "None", "true"]
COMMAS = [("a", f'{i}, "{i}"') for i in range(4)]
NFC, NFD = "José Ångström", unicodedata.normalize("NFD", "José Ångström")
MARK = b"\xef\xbb\xbf"
# What is odd: file, its bytes, the rows (task, text).
CASES = {
    "a byte order mark": ("t.csv", MARK + to_csv(), GOOD),
    "a byte order mark and quotes": ("t.csv", MARK + to_csv(quoting=csv.QUOTE_ALL), GOOD),
    "a byte order mark in JSON": ("t.jsonl", MARK + to_json(named()), GOOD),
    "Windows' line ends": ("t.csv", to_csv(ends="\r\n"), GOOD),
    "old line ends": ("t.csv", to_csv(ends="\r"), GOOD),
    "no line end at the end": ("t.csv", to_csv()[:-1], GOOD),
    "blank lines are no rows": ("t.csv", b"\n\n" + to_csv(ends="\n\n\r\n") + b"\n", GOOD),
    "every cell in quotes": ("t.csv", to_csv(AS_THEY_ARE, quoting=csv.QUOTE_ALL), AS_THEY_ARE),
    "the same in JSON": ("t.ndjson", to_json(named(AS_THEY_ARE)), AS_THEY_ARE),
    "the same in Parquet": ("t.parquet", to_parquet(task=["a"] * len(ODD), text=ODD), AS_THEY_ARE),
    "TSV with commas": ("t.tsv", to_csv(COMMAS, separator="\t"), COMMAS),
    "a quote within a cell": ("t.csv", to_csv() + b'a,a 5" pipe\n', [*GOOD, ("a", 'a 5" pipe')]),
    "two columns that nobody needs": (
        "t.csv",
        to_csv([(*row, "x", "y") for row in GOOD], ("task", "text", "n", "n")),
        GOOD,
    ),
    "the tasks as rep_name": ("t.csv", to_csv(header=("rep_name", "text")), GOOD),
    **{f"packed as .{end}": (f"t.csv.{end}", pack(to_csv()), GOOD) for end, pack in PACKED.items()},
    **{
        f"two archives one after the other, .{end}": (f"t.csv.{end}", pack(to_csv()[:50]) + pack(to_csv()[50:]), GOOD)
        for end, pack in PACKED.items()
        if end != "zip"
    },
    "a capital ending, a name in the .zip": ("t.CSV.ZIP", zipped(("whatever", to_csv())), GOOD),
    "packed TSV": ("t.tsv.gz", PACKED["gz"](to_csv(separator="\t")), GOOD),
    "packed JSON": ("t.jsonl.xz", PACKED["xz"](to_json(named())), GOOD),
    "numbers and marks of nothing as names": (
        "t.csv",
        to_csv([(n, "x") for n in NUMBERS]),
        [(n, "x") for n in NUMBERS],
    ),
    "numbers as names in JSON": (
        "t.jsonl",
        b"".join(f'{{"task": {n}, "text": 0.10}}\n'.encode() for n in ("7", "7.0", "1e3", "true")),
        [(n, "0.10") for n in ("7", "7.0", "1e3", "true")],
    ),
    "missing values in JSON": (
        "t.jsonl",
        b'{"text": "x"}\n{"task": "a"}\n\n{"task": null, "text": NaN}\n',
        [("", "x"), ("a", ""), ("", "")],
    ),
    "missing values in Parquet": (
        "t.parquet",
        to_parquet(task=[0.5, float("nan"), None], text=["x", None, "z"]),
        [("0.5", "x"), ("", ""), ("", "z")],
    ),
    "integers with gaps, and bytes, in Parquet": (
        "t.parquet",
        to_parquet(task=pa.array([2**53 + 1, None]), text=pa.array([b"x", "æ".encode()])),
        [("9007199254740993", "x"), ("", "æ")],
    ),
    "white space in names": (
        "t.csv",
        to_csv([(n, "x") for n in (" A  B ", "A\nB", "A\u00a0B", "\t")]),
        [("A B", "x")] * 3 + [("", "x")],
    ),
    "one name in two forms of Unicode": ("t.csv", to_csv([(NFD, "x"), (NFC, "y")]), [(NFC, "x"), (NFC, "y")]),
}


def cells(table: pd.DataFrame) -> list[tuple]:
    assert list(table) == ["task", "text", "date"]
    assert table.index.tolist() == list(range(len(table)))
    return list(table.itertuples(index=False, name=None))


@pytest.mark.parametrize(("file", "content", "rows"), CASES.values(), ids=CASES)
def test_every_cell_is_read_as_it_stands(file, content, rows, tmp_path):
    (tmp_path / file).write_bytes(content)
    assert cells(read(tmp_path / file)) == [(*row, "") for row in rows]


def test_dates_are_read_where_there_is_such_a_column(tmp_path):
    days = [datetime(2001, 2, 3, tzinfo=UTC), None]
    (tmp_path / "t.parquet").write_bytes(
        to_parquet(task=["a", "b"], text=["x", "y"], date=pa.array(days, pa.timestamp("ms", "UTC")))
    )
    dates = read(tmp_path / "t.parquet")["date"].tolist()
    assert dates[0].startswith("2001-02-03")
    assert dates[1] == ""
    (tmp_path / "t.csv").write_bytes(to_csv([("a", "b", "2001", "x")], ("day", "task", "date", "text")))
    assert cells(read(tmp_path / "t.csv")) == [("b", "x", "2001")]
    assert cells(read(tmp_path / "t.csv", date="day")) == [("b", "x", "a")]
    assert cells(read(tmp_path / "t.csv", task="day", text="task")) == [("a", "b", "2001")]


NAN, TEXTS = float("nan"), [text for _, text in GOOD]
FRAMES = {
    "numbers as columns": (pd.DataFrame({0: ["a"], 1: ["b"]}), {"task": "0", "text": "1"}, ["a"]),
    "an index that repeats": (pd.DataFrame({"task": ["a", "b"], "text": "x"}, index=[5, 5]), {}, ["a", "b"]),
    "categories": (pd.DataFrame({"task": ["a", "b"], "text": "x"}).astype("category"), {}, ["a", "b"]),
    "nothing in all its forms": (
        pd.DataFrame({"task": pd.Series([NAN, None, pd.NA, pd.NaT, "a"], dtype=object), "text": "x"}),
        {},
        [*[""] * 4, "a"],
    ),
    "numbers with gaps": (pd.DataFrame({"task": pd.array([7, None], dtype="Int64"), "text": "x"}), {}, ["7", ""]),
    "single precision": (pd.DataFrame({"task": [0.1, NAN], "text": "x"}).astype({"task": "float32"}), {}, ["0.1", ""]),
}


@pytest.mark.parametrize(("given", "columns", "tasks"), FRAMES.values(), ids=FRAMES)
def test_a_frames_values_become_text(given, columns, tasks):
    found = documents(given, columns.get("task"), columns.get("text", "text"), None)
    assert [task for task, _, _ in cells(found)] == tasks


def test_a_large_table_is_cached_and_read_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("BORA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "t.csv"
    path.write_bytes(to_csv([(*row, "2001") for row in AS_THEY_ARE], ("who", "said", "when"), quoting=csv.QUOTE_ALL))
    columns = {"task": "who", "text": "said", "date": "when"}
    small = read(path, **columns)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(csv_file, "MIN_CACHED_BYTES", 0)
    pd.testing.assert_frame_equal(read(path, **columns), small)
    (file,) = (tmp_path / "cache").rglob("*.arrow")
    with monkeypatch.context() as patch:
        patch.setattr(csv_file, "_to_arrow", lambda *a: pytest.fail("read again"))
        pd.testing.assert_frame_equal(read(path, **columns), small)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)  # a damaged one is made again
    pd.testing.assert_frame_equal(read(path, **columns), small)
    assert read(path, task="when", text="said")["task"].tolist() == ["2001"] * len(ODD)  # other columns, another table
    path.write_bytes(path.read_bytes().replace(b"she said", b"he said"))
    assert read(path, **columns)["text"][2] == 'he said "yes, yes"'


def test_labels_of_a_saved_dataset_name_its_tasks_and_splits_are_joined(tmp_path):
    from bora.data import huggingface

    labels = datasets.ClassLabel(names=["Zoë", "b/c"])
    features = datasets.Features({"who": labels, "said": datasets.Value("string"), "n": datasets.Value("int64")})
    rows = {"who": [0, 1, 0, -1, None], "said": ["one", "two", None, "four", "five"], "n": [1, 2, 3, 4, 5]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": whole, "test": whole.select([1])}).save_to_disk(tmp_path / "saved")
    path, said = str(tmp_path / "saved"), ["one", "two", "", "four", "five"]
    tasks = ["Zoë", "b/c", "Zoë", "", ""]
    found = huggingface.read(path, task="who", text="said")
    assert cells(found) == [(*row, "") for row in zip(tasks, said, strict=True)]
    assert huggingface.read(path, split="test", task="n", text="said")["task"].tolist() == ["2"]
    assert huggingface.read(path, split="all", task="who", text="said")["text"].tolist() == [*said, "two"]
    whole.save_to_disk(tmp_path / "one")
    assert len(huggingface.read(str(tmp_path / "one"), task="who", text="said")) == 5


CARD = "dataset_info:\n  features:\n  - {name: who, dtype: {class_label: {names: {'0': Zoë, '1': b/c}}}}\n"
CARD = f"---\n{CARD}  - {{name: said, dtype: string}}\n  - {{name: id, dtype: string}}\n---\n"


def test_a_folder_of_files_is_read_as_text_with_the_labels_that_its_card_declares(tmp_path):
    from bora.data import huggingface

    for name, content in (("csv/data.csv", b"who,said,id\n0,one,007\n1,NA,2\n"), ("json/t.jsonl", to_json(named()))):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    path = str(tmp_path / "csv")
    assert cells(huggingface.read(path, task="id", text="said")) == [("007", "one", ""), ("2", "NA", "")]
    (tmp_path / "csv/README.md").write_text(CARD, "utf-8")
    assert cells(huggingface.read(path, task="who", text="said")) == [("Zoë", "one", ""), ("b/c", "NA", "")]
    assert cells(huggingface.read(str(tmp_path / "json"))) == [(*row, "") for row in GOOD]


PATHS = [
    "../x",
    "..\\x",
    ".",
    "..",
    "/etc/passwd",
    "~",
    "-rf",
    "--help",
    "n" * 300,
    "n" * 299 + "m",
    "a/b",
    "a-b",
    "A-B",
]
MARKS = ["👩\u200d👧", "🙂", "水", "*?<>|:\"'`$(x)", "${tau}", "{task}", "[red]x[/red]", "=1+1", "%s %d"]
NAMES = [*PATHS, *MARKS, "hierarchical-mean"]


def test_any_name_may_be_a_tasks(command, call, tmp_path):
    from bora.commands import export

    (tmp_path / "t.csv").write_bytes(to_csv([row for name in NAMES for row in docs(name, 3)]))
    options = "data=table data.path=t.csv data.min_documents=3 data.n_tasks=null data.max_tokens=16 trainer.max_steps=1"
    code, out, err = command(*options.split(), "logger=none", "lora.rank=1", "hydra.run.dir=run")
    assert (code, err) == (0, "")
    assert "[red]x[/red]" in out
    code, _, err = call(export.main, tmp_path / "run", tmp_path / "out")
    assert (code, err) == (0, "")
    folders = json.loads((tmp_path / "out/tasks.json").read_text("utf-8"))["tasks"]
    assert sorted(folders.values()) == sorted(NAMES)
    assert all((tmp_path / "out" / folder / "adapter_config.json").is_file() for folder in folders)
    assert {path.name for path in Path(tmp_path).iterdir()} == {"t.csv", "run", "out"}
