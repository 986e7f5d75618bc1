"""Any table of (task, text, date) as a data frame: CSV, TSV, JSON lines or Parquet.

Everything is read as text: a speaker may be called "NA", a task may be "007".
"""

import csv
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from bora.cache import digest, kept
from bora.errors import InputError, first_line

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zip": "zip"}
# Where data.task is not given, the first of these columns that the table has.
TASK_COLUMNS = ("task", "rep_name")
OPTIONAL = "\0optional"  # in the place of a column: one of these, if there is one; no column is called so
# What the readers raise at a file that is not what its ending says. Arrow's and json's parsing errors
# are ValueErrors, as are wrong encodings; zipfile raises RuntimeError at an encrypted member.
UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    RuntimeError,
    csv.Error,
    lzma.LZMAError,
    zlib.error,
    zipfile.BadZipFile,
    pa.ArrowException,
)
LAST_ROW = "\x1f"  # the control character "unit separator", alone in each cell
BYTES_AT_A_TIME = 2**26  # of CSV; a row must fit
LARGE = 2**26  # bytes of a CSV file whose needed columns are worth keeping


def read(
    path: str,
    task: str | None = None,
    text: str = "text",
    date: str | None = None,
    need_task: bool = True,
) -> pd.DataFrame:
    """Read the columns that are needed, and only those, in bounded memory.

    Args:
        path: .csv, .tsv, .jsonl (.ndjson) or .parquet; the first three also compressed
            (.gz, .bz2, .xz, .zst, .zip).
        task: column that names the task; None for the first of TASK_COLUMNS there is.
        text: column that holds the document.
        date: column with the date; None for `date` where there is one.
        need_task: False if a table without a column of tasks will do, where none is asked for.

    Returns:
        Columns `task`, `text`, `date` (empty strings where there is none); the index counts the
        table's rows from 0.

    Raises:
        InputError: no such file or column, or a file that is not what its ending says.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"data.path={path}: there is no such file (seen from {Path.cwd()})")
    ending, compression = _format(file)
    if task is None and not need_task:
        task = OPTIONAL
    readers: dict[str, Callable] = {
        ".csv": lambda: read_csv(file, ",", compression, task, text, date),
        ".tsv": lambda: read_csv(file, "\t", compression, task, text, date),
        ".jsonl": lambda: _read_json(file, compression, task, text, date),
        ".ndjson": lambda: _read_json(file, compression, task, text, date),
        ".parquet": lambda: _read_parquet(file, task, text, date),
    }
    if ending not in readers:
        raise InputError(
            f"data.path={path}: the ending {ending or '(none)'!r} is not one of "
            f"{', '.join(readers)}, alone or before {', '.join(COMPRESSIONS)}"
        )
    try:
        table = readers[ending]()
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(
            f"data.path={path} is not readable as {file.name!r} says: {first_line(error)}"
        ) from error
    return table


def columns_of(
    available: list[str], path: Path | str, task: str | None, text: str, date: str | None
) -> dict[str, str]:
    """Which of the table's columns are task, text and date: {column in the table: our name}.

    Raises:
        InputError: one that is needed is missing.
    """
    available = [str(a) for a in available]

    def need(option: str, name: str) -> str:
        if name not in available:
            raise InputError(
                f"data.{option}={name}: {path} has no such column; it has {', '.join(available)}"
            )
        return name

    if task in (None, OPTIONAL):
        needed, task = task is None, next((c for c in TASK_COLUMNS if c in available and c != text), None)
        if task is None and needed:
            raise InputError(
                f"data.task is not given and {path} has no column {' or '.join(TASK_COLUMNS)}; "
                f"name the column that holds the task: data.task=COLUMN, one of {', '.join(available)}"
            )
    if date is None and "date" in available and "date" not in (task, text):
        date = "date"
    chosen = {} if task is None else {"task": need("task", task)}
    chosen["text"] = need("text", text)
    if date is not None:
        chosen["date"] = need("date", date)
    if len(set(chosen.values())) < len(chosen):
        raise InputError(
            "task, text and date must be different columns, not "
            + ", ".join(f"data.{option}={name}" for option, name in chosen.items())
        )
    return {name: ours for ours, name in chosen.items()}


def read_csv(
    file: Path,
    separator: str = ",",
    compression: str | None = None,
    task: str | None = None,
    text: str = "text",
    date: str | None = None,
    missing: str | None = None,
) -> pd.DataFrame:
    """`read` for CSV; a large file's columns are kept in the cache folder for the next start.

    Args:
        missing: a cell that stands for none; None if there is no such mark.
    """
    names, batches = _csv_batches(file, separator, compression, task, text, date)

    def make() -> pa.Table:
        parts = []
        for batch in batches:
            columns = {names[c]: batch.column(c) for c in batch.schema.names}
            if missing is not None:
                columns = {
                    ours: pa.compute.if_else(pa.compute.equal(c, missing), "", c)
                    for ours, c in columns.items()
                }
            parts.append(pa.table(columns))
        return pa.concat_tables(parts)

    stat = file.stat()
    if stat.st_size < LARGE:
        table = make()
    else:
        about = ["table", 1, str(file.resolve()), stat.st_size, stat.st_mtime_ns, separator, names, missing]
        table = kept("tables", digest(about), make)
    if not len(table):
        raise InputError(f"data.path={file} holds no rows")
    return finish(table.to_pandas(), {})


def _csv_batches(
    file: Path, separator: str, compression: str | None, task: str | None, text: str, date: str | None
) -> tuple[dict[str, str], Iterator[pa.RecordBatch]]:
    """The needed columns of a CSV file, all as text, a part at a time.

    Arrow reads only what is asked for and, unlike pandas with chosen columns, refuses a row with
    more or fewer cells than the header.
    """

    def batches(columns: list[str], n_columns: int) -> Iterator[pa.RecordBatch]:
        # Arrow takes a quote that is opened and never closed for the rest of the file. A row put
        # behind the last one shows it: the open quote swallows it.
        last_row = separator.join([LAST_ROW] * n_columns).encode()
        reader = pa.csv.open_csv(
            _Appended(open_stream(file, compression), b"\n" + last_row + b"\n"),
            pa.csv.ReadOptions(block_size=BYTES_AT_A_TIME),
            pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            pa.csv.ConvertOptions(
                include_columns=columns, column_types={c: pa.large_string() for c in columns}
            ),
        )
        last = None
        for batch in reader:
            if batch.num_rows:
                if last is not None:
                    yield last
                last = batch
        if last is None or last.column(0)[-1].as_py() != LAST_ROW:
            raise InputError(f"data.path={file}: a quote is opened and never closed")
        yield last.slice(0, last.num_rows - 1)

    with open_stream(file, compression) as stream:
        header = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        available = next(csv.reader(header, delimiter=separator), None)
    if available is None:
        raise InputError(f"data.path={file} is empty")
    repeated = {c for c in available if available.count(c) > 1}
    names = columns_of(available, file, task, text, date)
    if repeated & set(names):
        raise InputError(f"{file} has more than one column {sorted(repeated & set(names))[0]!r}; rename them")
    return names, batches(list(names), len(available))


class _Appended(io.RawIOBase):
    """A stream with some bytes more at its end."""

    def __init__(self, stream: IO[bytes], more: bytes):
        self._streams = [stream, io.BytesIO(more)]

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while self._streams:
            data = self._streams[0].read(size)
            if data:
                return data
            self._streams.pop(0).close()
        return b""


def open_stream(file: Path, compression: str | None) -> IO[bytes]:
    """The file's bytes, decompressed.

    Raises:
        InputError: a .zip that does not hold exactly one file.
    """
    if compression is None:
        return file.open("rb")
    if compression == "xz":  # Arrow has no codec for it
        return lzma.open(file)
    if compression == "zip":
        archive = zipfile.ZipFile(file)
        if len(archive.namelist()) != 1:
            raise InputError(
                f"data.path={file} holds {len(archive.namelist())} files; it must hold one table"
            )
        return archive.open(archive.namelist()[0])
    return pa.CompressedInputStream(pa.OSFile(str(file)), compression)


def _format(file: Path) -> tuple[str, str | None]:
    """The file's format ending and its compression."""
    suffixes = [s.lower() for s in file.suffixes]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression:
        suffixes = suffixes[:-1]
    return (suffixes[-1] if suffixes else ""), compression


def _read_json(file: Path, compression, task, text, date) -> pd.DataFrame:
    records: list[dict] = []
    available: dict[str, None] = {}
    with open_stream(file, compression) as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, "utf-8-sig"), start=1):
            if not line.strip():
                continue
            record = json.loads(line)
            if not isinstance(record, dict):
                raise InputError(f"data.path={file}: line {number} is not a JSON object")
            available.update(dict.fromkeys(record))
            records.append(record)
    if not records:
        raise InputError(f"data.path={file} holds no rows")
    names = columns_of(list(available), file, task, text, date)
    # A number keeps the form it has in the file; it is a name here, not a quantity.
    columns = {c: [_as_text(record.get(c)) for record in records] for c in names}
    return finish(pd.DataFrame(columns, dtype=str), names)


def _as_text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read_parquet(file: Path, task, text, date) -> pd.DataFrame:
    names = columns_of(pa.parquet.read_schema(file).names, file, task, text, date)
    table = pa.parquet.read_table(file, columns=list(names))
    # Arrow casts integers with gaps to text as they are; pandas would make them floats first.
    columns = {c: table[c].cast(pa.large_string()).fill_null("").to_pandas() for c in names}
    return finish(pd.DataFrame(columns), names)


def in_hand(**names: str | None) -> pd.DataFrame:
    """The reader of data=frame, whose table bora.fit gives along.

    Raises:
        InputError: always; it is called where there is no frame.
    """
    raise InputError("data=frame is for bora.fit in Python; here give data=table data.path=FILE")


def finish(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """Our column names, and the empty string for a column that is not there."""
    table = table.rename(columns=names)
    for ours in ("task", "date"):
        if ours not in table:
            table[ours] = ""
    return table[["task", "text", "date"]]
