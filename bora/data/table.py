"""Any table of (task, text, date) as a data frame: CSV, TSV, JSON lines or Parquet."""

import json
import lzma
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from bora.data.columns import CHARACTERS_SHOWN, OPTIONAL, columns_of, from_arrow, from_values
from bora.data.csv_file import read_csv
from bora.data.streams import COMPRESSIONS, text_lines
from bora.errors import UserError, first_line

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
        UserError: no such file or column, or a file that is not what its ending says.
    """
    file = existing(path)
    try:
        return _read(file, OPTIONAL if task is None and not need_task else task, text, date)
    except UNREADABLE as error:
        if isinstance(error, PermissionError):
            raise UserError(f"data.path={path}: {error.strerror}") from error
        raise UserError(
            f"data.path={path} is not readable as {Path(path).name!r} says: {first_line(error)}; it is damaged, or not "
            "what its ending says"
        ) from error


def existing(path: Path | str) -> Path:
    """The file of that name.

    Raises:
        UserError: there is none.
    """
    seen_from = f"(seen from {Path.cwd()})"
    try:
        file = Path(path).expanduser()
        if file.is_file():
            return file
        what = "there is no such file"
        if file.exists():
            what = "that is a folder, not a file" if file.is_dir() else "that is no ordinary file; give one"
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, ~nobody, a NUL
        raise UserError(
            f"data.path={path}: there is no such file {seen_from}: {first_line(error)}"
        ) from error
    raise UserError(f"data.path={path}: {what} {seen_from}")


def _read(file: Path, task: str | None, text: str, date: str | None) -> pd.DataFrame:
    ending, compression = _format(file)
    readers: dict[str, Callable] = {
        ".csv": lambda: read_csv(file, ",", compression, task, text, date),
        ".tsv": lambda: read_csv(file, "\t", compression, task, text, date),
        ".jsonl": lambda: _read_json(file, compression, task, text, date),
        ".ndjson": lambda: _read_json(file, compression, task, text, date),
        ".parquet": lambda: _read_parquet(file, task, text, date),
    }
    if ending not in readers:
        raise UserError(
            f"data.path={file}: the ending {ending or '(none)'!r} is not one of "
            f"{', '.join(readers)}, alone or before {', '.join(COMPRESSIONS)}"
        )
    return readers[ending]()


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
                raise UserError(
                    f"data.path={file} is not readable: line {number} is no JSON ({getattr(error, 'msg', error)})"
                ) from error
            if not isinstance(record, dict):
                raise UserError(f"data.path={file}: line {number} is not a JSON object")
            available.update(dict.fromkeys(record))
            records.append(record)
    if not records:
        raise UserError(f"data.path={file} holds no rows")
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
    metadata = pa.parquet.read_metadata(file)
    # No reader compares these: a changed count of rows would be so many rows fewer. (Lists have values more.)
    single = [i for i in range(metadata.num_columns) if metadata.schema.column(i).max_repetition_level == 0]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if any(group.column(i).num_values != group.num_rows for i in single):
            raise ValueError(f"the columns of row group {number} are not of its {group.num_rows} rows")
    names = columns_of(metadata.schema.to_arrow_schema().names, file, task, text, date)
    # Checksums, where the file has them, are not looked at unless they are asked for.
    table = pa.parquet.read_table(file, columns=list(names), page_checksum_verification=True)
    return from_arrow(table, names, f"data.path={file}")


def in_hand(**names: str | None) -> pd.DataFrame:
    """The reader of data=frame, whose table bora.fit gives along.

    Raises:
        UserError: always; it is called where there is no frame.
    """
    raise UserError("data=frame is for bora.fit in Python; here give data=table data.path=FILE")
