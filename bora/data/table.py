"""Any table of (task, text, date) as a data frame: CSV, TSV, JSON lines or Parquet.

Everything is read as text: a speaker may be called "NA", a task may be "007".
"""

import csv
import json
import lzma
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from bora.cache import digest, kept
from bora.errors import InputError, first_line
from bora.names import one_spelling
from bora.streams import COMPRESSIONS, text_lines

# Where data.task is not given, the first of these columns that the table has.
TASK_COLUMNS = ("task", "rep_name")
OPTIONAL = "\0optional"  # in the place of a column: one of these, if there is one; no column is called so
# What the readers raise at a file that is not what its ending says. Arrow's and json's parsing errors
# are ValueErrors; zipfile raises RuntimeError at an encrypted member, json at a thousand open brackets.
UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    RuntimeError,
    lzma.LZMAError,
    zlib.error,
    zipfile.BadZipFile,
    pa.ArrowException,
)
CHARACTERS_AT_A_TIME = 2**26  # of a CSV file's needed columns, before Arrow has them
LARGE = 2**26  # bytes of a CSV file whose needed columns are worth keeping
NAMES_SHOWN, CHARACTERS_SHOWN = 30, 60  # in a message that lists columns
csv.field_size_limit(2**31 - 1)  # a cell may be long; the module's own bound is 128 KiB


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
    try:
        return _read(path, OPTIONAL if task is None and not need_task else task, text, date)
    except UNREADABLE as error:
        raise InputError(
            f"data.path={path} is not readable as {Path(path).name!r} says: {first_line(error)}; it is damaged, or not "
            "what its ending says"
        ) from error


def _read(path: str, task: str | None, text: str, date: str | None) -> pd.DataFrame:
    file = Path(path).expanduser()
    if not file.is_file():
        what = "that is a folder, not a file" if file.is_dir() else "there is no such file"
        raise InputError(f"data.path={path}: {what} (seen from {Path.cwd()})")
    ending, compression = _format(file)
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
    return readers[ending]()


def columns_of(
    available: list[str], path: Path | str, task: str | None, text: str, date: str | None
) -> dict[str, str]:
    """Which of the table's columns are task, text and date: {column in the table: our name}.

    Raises:
        InputError: one that is needed is missing, or there twice.
    """

    def need(option: str, name: str) -> str:
        if name not in available:
            raise InputError(f"data.{option}={name}: {path} has no such column; it has {_listed(available)}")
        if available.count(name) > 1:
            raise InputError(f"{path} has more than one column {name!r}; rename them")
        return name

    if task in (None, OPTIONAL):
        needed, task = task is None, next((c for c in TASK_COLUMNS if c in available and c != text), None)
        if task is None and needed:
            raise InputError(
                f"data.task is not given and {path} has no column {' or '.join(TASK_COLUMNS)}; "
                f"name the column that holds the task: data.task=COLUMN, one of {_listed(available)}"
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


def _listed(names: list[str]) -> str:
    """Column names as one short line, whatever they hold."""
    shown = [n[:CHARACTERS_SHOWN] + "…" * (len(n) > CHARACTERS_SHOWN) for n in names[:NAMES_SHOWN]]
    shown = [n if n.isprintable() else repr(n) for n in shown]
    more = [f"{len(names) - NAMES_SHOWN} more"] * (len(names) > NAMES_SHOWN)
    return ", ".join([*shown, *more])


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
    with closing(_csv_rows(file, separator, compression)) as rows:
        available = next(rows, None)
        if available is None:
            raise InputError(f"data.path={file} is empty")
        if any("\0" in column for column in available):
            raise InputError(
                f"data.path={file} is not readable: its header holds NUL characters, as UTF-16 does; save it as UTF-8"
            )
        names = columns_of(available, file, task, text, date)
        places = [available.index(c) for c in names]

        def make() -> pa.Table:
            cells: list[list[str]] = [[] for _ in places]
            parts, size = [], 0
            for row in rows:
                for place, column in zip(places, cells, strict=True):
                    cell = row[place]
                    column.append("" if cell == missing else cell)
                    size += len(cell)
                if size > CHARACTERS_AT_A_TIME:
                    parts.append(_arrow(cells, names))
                    cells, size = [[] for _ in places], 0
            return pa.concat_tables([*parts, _arrow(cells, names)])

        stat = file.stat()
        if stat.st_size < LARGE:
            table = make()
        else:
            about = ["table", 2, str(file.resolve()), stat.st_size, stat.st_mtime_ns, separator, names]
            table = kept("tables", digest([*about, missing]), make)
    return finish(table.to_pandas(), f"data.path={file}")


def _arrow(columns: list[list[str]], names: Mapping[str, str]) -> pa.Table:
    return pa.table([pa.array(c, pa.large_string()) for c in columns], list(names.values()))


def _csv_rows(file: Path, separator: str, compression: str | None) -> Generator[list[str], None, None]:
    """The header and then each row, as many cells in each; a blank line is no row.

    Python's csv, since it can be strict: Arrow's and pandas' readers take `"one" two` for `one two`, and two rows
    with a quote too many each for one row. It is as fast as Arrow's.
    """
    with text_lines(file, compression) as lines:
        rows = csv.reader(lines, delimiter=separator, strict=True)
        n_cells, line, unreadable = 0, 1, f"data.path={file} is not readable:"
        try:
            for row in rows:
                if row:
                    n_cells = n_cells or len(row)
                    if len(row) != n_cells:
                        raise InputError(
                            f"{unreadable} line {line} has {len(row)} cells and the header {n_cells}; put a cell that "
                            f"holds {separator!r} or a line break in quotes"
                        )
                    yield row
                line = rows.line_num + 1
        except csv.Error as error:
            if "end of data" in str(error):
                raise InputError(
                    f"data.path={file}: a quote is opened and never closed, in the row that begins in line {line}; "
                    "close it, or put the cell in quotes and write the quote within it twice"
                ) from error
            raise InputError(
                f"{unreadable} in the row that begins in line {line} a quoted cell goes on behind its closing quote; "
                "write a quote within a cell twice"
            ) from error


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
    with text_lines(file, compression) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = _JSON.decode(line)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"data.path={file} is not readable: line {number} is no JSON ({getattr(error, 'msg', error)})"
                ) from error
            if not isinstance(record, dict):
                raise InputError(f"data.path={file}: line {number} is not a JSON object")
            available.update(dict.fromkeys(record))
            records.append(record)
    if not records:
        raise InputError(f"data.path={file} holds no rows")
    names = columns_of(list(available), file, task, text, date)
    return from_values({c: [r.get(c) for r in records] for c in names}, names, f"data.path={file}")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; of a key that stands there twice Python's json would keep the last without a word."""
    record = dict(pairs)
    if len(record) < len(pairs):
        repeated = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {repeated[:CHARACTERS_SHOWN]!r} stands there more than once")
    return record


# A number keeps the form it has in the file; it is a name here, not a quantity.
_JSON = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=str, parse_int=str,
    parse_constant=lambda name: None if name == "NaN" else name,
)  # fmt: skip


def _read_parquet(file: Path, task, text, date) -> pd.DataFrame:
    names = columns_of(pa.parquet.read_schema(file).names, file, task, text, date)
    table = pa.parquet.read_table(file, columns=list(names))
    columns = {}
    for column, ours in names.items():
        cells = table[column]
        try:
            if pa.types.is_floating(cells.type):
                cells = pa.compute.if_else(pa.compute.is_nan(cells), None, cells)
            # Arrow casts integers with gaps to text as they are; pandas would make them floats first.
            cells = cells.cast(pa.large_string()).fill_null("")
            cells.validate(full=True)  # that it is UTF-8, which nobody has looked at yet
        except pa.ArrowException as error:
            raise InputError(
                f"data.path={file} is not readable: column {column!r} of type {cells.type} is no text "
                f"({first_line(error)})"
            ) from error
        columns[ours] = cells.to_pandas()
    return finish(pd.DataFrame(columns), f"data.path={file}")


def in_hand(**names: str | None) -> pd.DataFrame:
    """The reader of data=frame, whose table bora.fit gives along.

    Raises:
        InputError: always; it is called where there is no frame.
    """
    raise InputError("data=frame is for bora.fit in Python; here give data=table data.path=FILE")


def from_values(columns: Mapping[str, Iterable], names: Mapping[str, str], source: str) -> pd.DataFrame:
    """A table of any values as text: None, NaN and the like as the empty string, truth as JSON and Parquet write it.

    Args:
        columns: the values by column.
        names: see `columns_of`.
        source: where they are from, for messages.

    Raises:
        InputError: a value that is more than one (a list, an object), is bytes, or is no text that can be written
            down; or no rows.
    """
    table = {}
    for column, ours in names.items():
        cells = []
        for row, value in enumerate(columns[column]):
            if not isinstance(value, str):
                if isinstance(value, bytes) or not pd.api.types.is_scalar(value):
                    raise InputError(
                        f"{source}: column {column!r} holds a {type(value).__name__} in row {row} (counted from 0), "
                        "not a text or a number"
                    )
                value = "" if pd.isna(value) else value
                value = str(value).lower() if isinstance(value, (bool, np.bool_)) else str(value)
            cells.append(value)
        try:
            table[ours] = pa.array(cells, pa.large_string()).to_pandas()
        except UnicodeEncodeError as error:
            row = next(i for i, c in enumerate(cells) if any("\ud800" <= letter <= "\udfff" for letter in c))
            raise InputError(
                f"{source}: column {column!r} holds half a surrogate pair in row {row} (counted from 0), which is no "
                "character; write the text anew"
            ) from error
    return finish(pd.DataFrame(table), source)


def finish(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Columns task, text and date, the empty string for what is not there, and each task's name in one spelling.

    Raises:
        InputError: no rows, or a task's name that cannot be one.
    """
    if table.empty:
        raise InputError(f"{source} holds no rows")
    for ours in ("task", "date"):
        if ours not in table:
            table[ours] = ""
    table["task"] = one_spelling(table["task"], source)
    return table[["task", "text", "date"]]
