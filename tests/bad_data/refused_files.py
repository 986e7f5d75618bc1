"""Files that cannot be read as a table; each with what is said of it."""

import gzip
import io
import lzma
import zipfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet

from tests.bad_data.inputs import (
    GOOD,
    PACKED,
    Refused,
    dataset,
    docs,
    half,
    in_folder,
    locked_zip,
    named,
    not_utf8,
    parquet,
    saved,
    to_csv,
    to_json,
    two_columns_of_one_name,
    zipped,
)


def in_utf(encoding: str) -> bytes:
    return to_csv().decode().encode(encoding)


def wider(*more: str) -> list[tuple[str, ...]]:
    return [(*row, *more) for row in GOOD]


def half_a_parquet_file(path: Path) -> None:
    parquet(task=["a"], text=["b"])(path)
    path.write_bytes(half(path.read_bytes()))


def half_a_saved_dataset(path: Path) -> None:
    saved(train=dataset(task=["a"] * 5000, text=["b"] * 5000))(path)
    (file,) = (path / "train").glob("*.arrow")
    file.write_bytes(half(file.read_bytes()))


def changed_parquet(path: Path) -> None:
    """A file with checksums, in which a text has another letter."""
    table = pa.table({"task": [task for task, _ in GOOD], "text": [text for _, text in GOOD]})
    pa.parquet.write_table(table, path, compression="NONE", use_dictionary=False, write_page_checksum=True)
    path.write_bytes(path.read_bytes().replace(b"return 2", b"return 4"))


def damaged_zip() -> bytes:
    """A stored table with a comma where a letter was: its checksum is wrong, and its second row has three cells."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("t.csv", to_csv())
    return out.getvalue().replace(b"def a_1", b"def,a_1", 1)


def odd_labels(path: Path) -> None:
    labels = datasets.Features({"task": datasets.ClassLabel(names=["a"]), "text": datasets.Value("string")})
    table = pa.table({"task": pa.array([0, 7]), "text": ["b", "c"]})
    found = datasets.Dataset(table.cast(labels.arrow_schema), datasets.DatasetInfo(features=labels))
    found.save_to_disk(path)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


DAMAGED = "damaged, or not what its ending says$"
NOT_LOADED = "could not be loaded as a dataset"
AS_UTF8 = "not readable as UTF-8"

ENCODINGS = [
    Refused("Latin-1", b"task,text\na,caf\xe9\n", AS_UTF8 + r" \(line 2: byte 0xe9\); save it as UTF-8$"),
    Refused("Latin-1 far down", to_csv(docs("a", 5000)) + b"a,\xe6\n", AS_UTF8 + r" \(line 5002: byte 0xe6"),
    Refused("Latin-1 in a column that is not needed", b"task,text,n\na,b,\xe6\n", AS_UTF8 + r" \(line 2"),
    Refused("Latin-1 in the header", b"task,text,\xe5r\na,b,c\n", AS_UTF8 + r" \(line 1: byte 0xe5"),
    Refused("Latin-1 in JSON", b'{"task": "a", "text": "caf\xe9"}\n', AS_UTF8 + r" \(line 1", "t.jsonl"),
    Refused("Latin-1, packed", gzip.compress(b"task,text\na,\xe6\n"), AS_UTF8 + r" \(line 2", "t.csv.gz"),
    Refused("UTF-16 with a mark", in_utf("utf-16"), "it is UTF-16 or UTF-32; save it as UTF-8$"),
    Refused("UTF-16 without a mark", in_utf("utf-16-le"), "NUL characters, as UTF-16 does; save it as UTF-8$"),
    Refused("UTF-32", in_utf("utf-32"), "it is UTF-16 or UTF-32"),
    Refused("UTF-16 in JSON", "{}\n".encode("utf-16"), "it is UTF-16 or UTF-32", "t.jsonl"),
    Refused("a letter cut in half at the end", to_csv() + "a,é".encode()[:-1], AS_UTF8 + r" \(line 10: byte 0xc3"),
    Refused("half a surrogate pair as UTF-8", b"task,text\na,\xed\xa0\xbd\n", AS_UTF8 + r" \(line 2: byte 0xed"),
    Refused("half a surrogate pair in JSON", to_json(named()) + b'{"task": "a", "text": "\\ud83d"}\n',
            "column 'text' holds half a surrogate pair in row 8", "t.jsonl"),
    Refused("not UTF-8 in Parquet", not_utf8, "column 'text' .*UTF8", "t.parquet"),
]  # fmt: skip

TABLES = [
    Refused("empty", b"", "t.csv is empty$"),
    Refused("a byte order mark alone", b"\xef\xbb\xbf", "t.csv is empty$"),
    Refused("blank lines alone", b"\n\n\r\n", "t.csv is empty$"),
    Refused("a header alone", b"task,text\n", "t.csv holds no rows$"),
    Refused("a quote never closed", b'task,text\na,one\nb,"two\nc,three\n',
            "a quote is opened and never closed, in the row that begins in line 3; close it"),
    Refused("a quote never closed in the header", b'task,"text\na,one\n', "never closed, .* begins in line 1;"),
    Refused("two rows with a quote too many", b'task,text\na,"one\nb,"two\nc,three\n',
            "begins in line 2 a quoted cell goes on behind its closing quote; write a quote within a cell twice$"),
    Refused("a quote closed too early", to_csv() + b'a,"one" two\n', "begins in line 10 a quoted cell goes on"),
    Refused("TSV whose quotes are just characters", to_csv(separator="\t") + b'a\t"Yes," he said\n',
            "begins in line 10 a quoted cell goes on", "t.tsv"),
    Refused("too many cells", to_csv() + b"a,b,c\n",
            "line 10 has 3 cells and the header 2; put a cell that holds ',' or a line break in quotes$"),
    Refused("too few cells", to_csv() + b"a\n", "line 10 has 1 cells and the header 2"),
    Refused("the last row cut off", to_csv(wider("x"), ("task", "text", "n")) + b"a,b", "line 10 has 2 cells"),
    Refused("semicolons", to_csv(separator=";"), "no column task or rep_name; .*one of task;text$"),
    Refused("tabs in a .csv", to_csv(separator="\t"), r"data.task=COLUMN, one of 'task\\ttext'$"),
    Refused("no column of texts", to_csv(header=("task", "said")), "no such column; it has task, said$"),
    Refused("capital letters in the header", to_csv(header=("Task", "Text")), "one of Task, Text$"),
    Refused("two columns of texts", to_csv(wider("x"), ("task", "text", "text")),
            "t.csv has more than one column 'text'; rename them$"),
    Refused("two columns of tasks", to_csv(wider("x"), ("task", "text", "task")), "more than one column 'task'"),
    Refused("two columns of dates", to_csv(wider("x", "y"), ("task", "text", "date", "date")),
            "more than one column 'date'"),
    Refused("one column for two", to_csv(), "must be different columns", options=("data.task=text",)),
    Refused("5,000 columns", to_csv([["x"] * 5000], map(str, range(5000))), "28, 29, 4970 more$"),
    Refused("a header of 200,000 characters", b"x" * 200_000, "COLUMN, one of x{60}…$"),
    Refused("a terminal's escape in the header", b"\x1b[31mtask,text\na,b\n", r"one of '\\x1b\[31mtask', text$"),
    Refused("random bytes", bytes(range(256)) * 40, AS_UTF8),
    Refused("an ending that says nothing", to_csv(), "the ending '.xlsx' is not one of .csv, .tsv", "t.xlsx"),
    Refused("a folder", Path.mkdir, "that is a folder, not a file"),
    Refused("no file", lambda path: None, "there is no such file"),
    Refused("a name too long for a file", lambda path: None, "File name too long",
            options=(f"data.path={'x' * 256}.csv",)),
    Refused("in nobody's home", lambda path: None, "home directory",
            options=("data.path='~nobody-of-this-name/t.csv'",)),
]  # fmt: skip

JSON_AND_PARQUET = [
    Refused("a broken line of JSON", to_json(named()) + b'{"task": "a", "text"\n',
            r"line 9 is no JSON \(Expecting ':'", "t.jsonl"),
    Refused("JSON over several lines", b'[\n {"task": "a",\n  "text": "b"}\n]\n', "line 1 is no JSON", "t.jsonl"),
    Refused("a JSON array", to_json([named()]), "line 1 is not a JSON object", "t.jsonl"),
    Refused("a JSON number", to_json([*named(), 5]), "line 9 is not a JSON object", "t.jsonl"),
    Refused("a JSON key twice", to_json(named()) + b'{"task": "a", "text": "b", "text": "c"}\n',
            r"line 9 is no JSON \(the key 'text' stands there more than once", "t.jsonl"),
    Refused("a list as text", to_json([*named(), {"task": "a", "text": ["b"]}]),
            r"column 'text' holds a list in row 8 \(counted from 0\), not a text or a number$", "t.jsonl"),
    Refused("an object as task", to_json([*named(), {"task": {"id": 1}, "text": "b"}]),
            "column 'task' holds a dict in row 8", "t.jsonl"),
    Refused("100,000 brackets", b'{"task": ' + b"[" * 100_000 + b"\n", "line 1 is no JSON .*recursion", "t.jsonl"),
    Refused("no line of JSON", b"\n \n", "holds no rows$", "t.jsonl"),
    Refused("Parquet with a letter changed", changed_parquet, "damaged", "t.parquet"),
    Refused("Parquet without rows", parquet(task=[], text=[]), "holds no rows$", "t.parquet"),
    Refused("lists in Parquet", parquet(task=["a"], text=[["b"]]), "'text' of type list.* is no text", "t.parquet"),
    Refused("structures in Parquet", parquet(task=[{"id": 1}], text=["b"]), "'task' of type struct", "t.parquet"),
    Refused("bytes in Parquet", parquet(task=["a"], text=[b"\xff"]), "'text' of type binary", "t.parquet"),
    Refused("two columns in Parquet", two_columns_of_one_name, "more than one column 'text'", "t.parquet"),
    Refused("half a Parquet file", half_a_parquet_file, DAMAGED, "t.parquet"),
    Refused("CSV called Parquet", to_csv(), DAMAGED, "t.parquet"),
    Refused("Parquet called CSV", parquet(task=["a"], text=["b"]), AS_UTF8),
]  # fmt: skip

ARCHIVES = [
    *(Refused(f"half of .{end}", half(pack(to_csv(docs("a", 900)))), DAMAGED, f"t.csv.{end}")
      for end, pack in PACKED.items()),
    *(Refused(f".{end} without its last byte", pack(to_csv())[:-1], DAMAGED, f"t.csv.{end}")
      for end, pack in PACKED.items()),
    *(Refused(f"plain text called .{end}", to_csv(), DAMAGED, f"t.csv.{end}") for end in (*PACKED, "zip")),
    Refused(".gz with a bit changed", flipped(gzip.compress(to_csv()), 40), DAMAGED, "t.csv.gz"),
    *(Refused(f".xz with {what} behind it", lzma.compress(to_csv()) + more, DAMAGED, "t.csv.xz")
      for what, more in {
          "a damaged stream": flipped(lzma.compress(b"c,d\n"), 20), "plain text": b"c,d\n",
          "half a stream": half(lzma.compress(b"c,d\n" * 99)),
      }.items()),
    Refused(".zip whose damage makes a cell more", damaged_zip(), DAMAGED, "t.csv.zip"),
    Refused("half of .zip", half(zipped({"t.csv": to_csv()})), DAMAGED, "t.csv.zip"),
    Refused("an empty .zip", zipped({}), "holds 0 files; it must hold one table$", "t.csv.zip"),
    Refused("two tables in .zip", zipped({"a.csv": to_csv(), "b.csv": to_csv()}), "holds 2 files", "t.csv.zip"),
    Refused(".zip with a password", locked_zip(), "password", "t.csv.zip"),
]  # fmt: skip

HF = ("data=datasets",)
DATASETS = [
    Refused("no such folder", lambda path: None, "d: there is no such folder", "./d", HF),
    Refused("a folder of nothing", Path.mkdir, NOT_LOADED, "./d", HF),
    Refused("half of a saved dataset", half_a_saved_dataset, NOT_LOADED, "./d", HF),
    Refused("a saved dataset without rows", saved(train=dataset(task=["a"], text=["b"]).select([])), NOT_LOADED,
            "./d", HF),
    Refused("a split that is not there", saved(train=dataset(task=["a"], text=["b"])),
            "data.split_name=dev: ./d has the splits train; or give all$", "./d", (*HF, "data.split_name=dev")),
    Refused("splits that do not fit together",
            saved(train=dataset(task=["a"], text=["b"]), test=dataset(task=[1], text=["b"])),
            NOT_LOADED, "./d", (*HF, "data.split_name=all")),
    Refused("lists in a dataset", saved(train=dataset(task=["a"], text=[["b"]])),
            "column 'text' holds a list in row 0", "./d", HF),
    Refused("a folder of files without such a column", in_folder("t.csv", to_csv()),
            "data.text=said: ./d has no such column; it has task, text$", "./d", (*HF, "data.text=said")),
    Refused("a folder of a broken file", in_folder("t.parquet", to_csv()), NOT_LOADED + ".*Parquet", "./d", HF),
    Refused("a folder of a broken CSV", in_folder("t.csv", b"task,text\na,b\na,b,c,d\n"), NOT_LOADED + ".*line 3",
            "./d", HF),
    Refused("labels without a name", odd_labels, NOT_LOADED, "./d", HF),
]  # fmt: skip
