"""Any table of (task, text, date) as a data frame: CSV, TSV, JSON lines or Parquet.

Everything is read as text: a speaker may be called "NA", a task may be "007".
"""

import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from bora.errors import InputError

COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zip": "zip"}
# Where data.task is not given, the first of these columns that the table has.
TASK_COLUMNS = ("task", "rep_name")
ROWS_AT_A_TIME = 50_000


def read(
    path: str, task: str | None = None, text: str = "text", date: str | None = None
) -> pd.DataFrame:
    """Read the columns that are needed, and only those, in bounded memory.

    Args:
        path: .csv, .tsv, .jsonl (.ndjson) or .parquet; the first three also compressed
            (.gz, .bz2, .xz, .zst, .zip).
        task: column that names the task; None for the first of TASK_COLUMNS there is.
        text: column that holds the document.
        date: column with the date; None for `date` where there is one.

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
    readers: dict[str, Callable] = {
        ".csv": lambda: _read_csv(file, ",", compression, task, text, date),
        ".tsv": lambda: _read_csv(file, "\t", compression, task, text, date),
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
    except (ValueError, OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        # pandas' and pyarrow's parsing errors are ValueErrors, as are wrong encodings.
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"data.path={path} is not readable as {file.name!r} says: {reason}") from error
    return table


def columns_of(
    available: list[str], path: Path, task: str | None, text: str, date: str | None
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

    if task is None:
        task = next((c for c in TASK_COLUMNS if c in available), None)
        if task is None:
            raise InputError(
                f"data.task is not given and {path} has no column {' or '.join(TASK_COLUMNS)}; "
                f"name the column that holds the task: data.task=COLUMN, one of {', '.join(available)}"
            )
    names = {need("task", task): "task", need("text", text): "text"}
    if len(names) < 2:
        raise InputError(f"data.task and data.text are both {text!r}; a task and its text are two columns")
    if date is not None:
        names[need("date", date)] = "date"
    elif "date" in available and "date" not in names:
        names["date"] = "date"
    return names


def _format(file: Path) -> tuple[str, str | None]:
    """The file's format ending and its compression."""
    suffixes = [s.lower() for s in file.suffixes]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression:
        suffixes = suffixes[:-1]
    return (suffixes[-1] if suffixes else ""), compression


def _read_csv(file: Path, separator: str, compression, task, text, date) -> pd.DataFrame:
    options = {
        "sep": separator,
        "compression": compression,
        "dtype": str,
        "keep_default_na": False,
        "na_filter": False,
        "encoding": "utf-8-sig",
    }
    header = pd.read_csv(file, nrows=0, **options)
    names = columns_of(list(header.columns), file, task, text, date)
    chunks = pd.read_csv(file, usecols=list(names), chunksize=ROWS_AT_A_TIME, **options)
    return _finish(pd.concat(list(chunks)), names)


def _read_json(file: Path, compression, task, text, date) -> pd.DataFrame:
    chunks, names = [], None
    options = {"lines": True, "dtype": False, "convert_dates": False, "compression": compression}
    for chunk in pd.read_json(file, chunksize=ROWS_AT_A_TIME, encoding="utf-8", **options):
        names = names or columns_of(list(chunk.columns), file, task, text, date)
        chunks.append(chunk.reindex(columns=list(names)))
    if names is None:
        raise InputError(f"data.path={file} holds no rows")
    return _finish(pd.concat(chunks, ignore_index=True), names)


def _read_parquet(file: Path, task, text, date) -> pd.DataFrame:
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(file)
    names = columns_of(schema.names, file, task, text, date)
    return _finish(pd.read_parquet(file, columns=list(names)).reset_index(drop=True), names)


def _finish(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """Our column names, text in every cell, the empty string for what is missing."""
    table = table.rename(columns=names)
    for column in names.values():
        missing = table[column].isna()
        table[column] = table[column].astype(str).mask(missing, "")
    if "date" not in table:
        table["date"] = ""
    return table[["task", "text", "date"]]
