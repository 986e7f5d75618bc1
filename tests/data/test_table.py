import bz2
import gzip
import json
import lzma
import re
import zipfile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from bora.data import csv_file
from bora.data.table import read
from bora.errors import UserError

ROWS = [
    ("Åse", 'one,\n"two"', "2001-02-03"),
    ("NA", "null", ""),
    ("007", "NaN", "2001-02-04"),
    ("x y", "é\t水", ""),
]
FRAME = pd.DataFrame(ROWS, columns=["who", "said", "when"])
COLUMNS = {"task": "who", "text": "said", "date": "when"}


def write(path, ending):
    if ending.startswith(".csv"):
        data = FRAME.to_csv(index=False).encode()
    elif ending.startswith(".tsv"):
        data = FRAME.to_csv(index=False, sep="\t").encode()
    else:
        data = "\n".join(json.dumps(r) for r in FRAME.to_dict("records")).encode()
    if ending.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("table.csv", data)
        return
    packer = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    path.write_bytes(next((f(data) for end, f in packer.items() if ending.endswith(end)), data))


@pytest.mark.parametrize(
    "ending",
    [
        ".csv",
        ".tsv",
        ".jsonl",
        ".ndjson",
        ".csv.gz",
        ".csv.bz2",
        ".csv.xz",
        ".csv.zip",
        ".tsv.gz",
        ".jsonl.xz",
    ],
)
def test_every_format_gives_the_same_table(tmp_path, ending):
    path = tmp_path / f"t{ending}"
    write(path, ending)
    table = read(str(path), **COLUMNS)
    assert list(table.itertuples(index=False, name=None)) == ROWS
    assert table.index.tolist() == [0, 1, 2, 3]


def test_parquet_with_numbers_dates_and_missing_values(tmp_path):
    frame = pd.DataFrame({"task": [1, 2], "text": ["a", None], "date": pd.to_datetime(["2001-01-01", None])})
    frame.to_parquet(tmp_path / "t.parquet")
    table = read(str(tmp_path / "t.parquet"))
    assert table["task"].tolist() == ["1", "2"]
    assert table["text"].tolist() == ["a", ""]
    assert table["date"][0].startswith("2001-01-01")
    assert table["date"][1] == ""


def test_numbers_as_names_keep_their_form(tmp_path):
    frame = pd.DataFrame({"task": pd.array([1, None, 12], dtype="Int64"), "text": ["a", "b", "c"]})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.set_index("task").to_parquet(tmp_path / "index.parquet")
    (tmp_path / "t.jsonl").write_text(
        '{"task": 1, "text": "a"}\n\n{"text": "b"}\n{"task": 12, "text": "c"}\n'
    )
    for name in ("t.parquet", "index.parquet", "t.jsonl"):
        assert read(str(tmp_path / name))["task"].tolist() == ["1", "", "12"]


def test_columns_are_found_by_their_usual_names(tmp_path):
    FRAME.rename(columns={"who": "rep_name", "said": "text"}).to_csv(tmp_path / "t.csv", index=False)
    table = read(str(tmp_path / "t.csv"))
    assert table["task"].tolist() == [r[0] for r in ROWS]
    assert table["date"].tolist() == [""] * 4  # no column called date


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbftask,text\na,b\n")
    assert read(str(tmp_path / "t.csv"))["task"].tolist() == ["a"]


def test_json_lines_may_lack_a_key_in_some_rows(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"task": "a", "text": "b", "date": "2001-01-01"}\n{"task": "a"}\n')
    assert read(str(tmp_path / "t.jsonl"))["text"].tolist() == ["b", ""]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"who,text\na,b\n", "data.task is not given"),
        ("t.csv", b"task,said\na,b\n", "data.text=text"),
        ("t.csv", b"", "is empty"),
        ("t.csv", b"task,text\n", "no rows"),
        ("t.csv", b"task,text,text\na,b,c\n", "more than one column"),
        ("t.csv", b'task,text\na,"b\n', "never closed"),
        ("t.csv", b'task,text\na,"b\nc,d\ne,f\n', "never closed"),
        ("t.csv", b"task,text\na,b\nc,d,e,f\n", "not readable"),
        ("t.csv", b"task,text\na,\xff\xfe\n", "not readable"),
        ("t.parquet", b"task,text\na,b\n", "not readable"),
        ("t.jsonl", b"task,text\na,b\n", "not readable"),
        ("t.jsonl", b"", "no rows"),
        ("t.csv.gz", b"task,text\na,b\n", "not readable"),
        ("t.csv.xz", b"task,text\na,b\n", "not readable"),
        ("t.csv.zst", b"task,text\na,b\n", "not readable"),
        ("t.csv.bz2", b"task,text\na,b\n", "not readable"),
        ("t.csv.zip", b"task,text\na,b\n", "not readable"),
        ("t.jsonl", b'{"task": "a", "text": "b"}\n5\n', "line 2 is not a JSON object"),
        ("t.csv", b"x" * 200_000, "data.task is not given.{,400}$"),
        ("t.txt", b"task,text\na,b\n", "ending"),
        ("t", b"task,text\na,b\n", "ending"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_quote_inside_a_cell_is_just_a_character(tmp_path):
    (tmp_path / "t.csv").write_text('task,text\na,a 5" pipe\n\nb,"six ""inches"""')
    assert read(str(tmp_path / "t.csv"))["text"].tolist() == ['a 5" pipe', 'six "inches"']


def test_truncated_compression_is_told(tmp_path):
    write(tmp_path / "t.csv.gz", ".csv.gz")
    whole = (tmp_path / "t.csv.gz").read_bytes()
    (tmp_path / "t.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not readable"):
        read(str(tmp_path / "t.csv.gz"), **COLUMNS)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read(str(tmp_path / "nowhere.csv"))


def test_a_missing_date_column_is_told(tmp_path):
    (tmp_path / "t.csv").write_text("task,text\na,b\n")
    with pytest.raises(UserError, match=r"data\.date=day"):
        read(str(tmp_path / "t.csv"), date="day")


def test_task_and_text_are_two_columns(tmp_path):
    (tmp_path / "t.csv").write_text("task,text\na,b\n")
    with pytest.raises(UserError, match="different columns"):
        read(str(tmp_path / "t.csv"), task="text")


def test_a_large_table_is_kept_and_read_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("BORA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "t.csv"
    write(path, ".csv")
    small = read(str(path), **COLUMNS)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(csv_file, "LARGE", 0)
    for _ in range(2):
        pd.testing.assert_frame_equal(read(str(path), **COLUMNS), small)
        (kept,) = (tmp_path / "cache").rglob("*.arrow")
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)  # a harmed one is made anew
    pd.testing.assert_frame_equal(read(str(path), **COLUMNS), small)
    pd.testing.assert_frame_equal(  # other columns are another table
        read(str(path), task="when", text="said", date="who").rename(
            columns={"task": "date", "date": "task"}
        )[list(small)],
        small,
    )


def test_a_parquet_file_whose_rows_were_miscounted_is_refused(tmp_path):
    file = tmp_path / "t.parquet"
    pa.parquet.write_table(pa.table({"task": ["a"] * 1000, "text": [f"text {i}" for i in range(1000)]}), file)
    whole, thousand, fewer = file.read_bytes(), b"\xd0\x0f", b"\xd0\x0b"  # as Thrift writes 1000 and 744
    seen = set()
    for place in re.finditer(re.escape(thousand), whole):
        file.write_bytes(whole[: place.start()] + fewer + whole[place.end() :])
        try:
            plainly = len(pa.parquet.read_table(file))
        except (OSError, pa.ArrowInvalid):
            plainly = None
        try:
            ours = len(read(file))
        except UserError:
            ours = None
        seen.add((plainly, ours))
    assert (744, None) in seen
    assert all(ours in (None, 1000) for _, ours in seen)
