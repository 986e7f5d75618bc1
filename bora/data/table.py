"""Read any table of (task, text, date): CSV, TSV, JSON lines or Parquet."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet

from bora.data.columns import MAX_SHOWN_CHARS, Columns, from_arrow, from_values
from bora.data.csv_file import read_csv
from bora.data.errors import ReadError, in_file
from bora.data.streams import OPENERS, text_lines
from bora.errors import UserError


def read(
    path: str | Path, task: str | None = None, text: str = "text", date: str | None = None, need_task: bool = True
) -> pd.DataFrame:
    """Read the columns that are needed, and only those, in bounded memory.

    Args:
        path: .csv, .tsv, .jsonl (.ndjson) or .parquet; the first three also compressed (.gz, .bz2, .xz, .zst, .zip).
        task, text, date, need_task: see Columns.

    Returns:
        Columns `task`, `text`, `date`, all text and '' where there is none; the index counts the table's rows from 0.

    Raises:
        ReadError: there is no such file or column, or the file is damaged or not what its ending says.
    """
    file = require_file(path)
    with in_file(path):
        return _reader(file)(file, Columns(task, text, date, need_task))


def require_file(path: str | Path) -> Path:
    """Return the file of that name.

    Raises:
        ReadError: there is none.
    """
    file = Path(os.path.expanduser(path))
    if os.path.isfile(file):
        return file
    problem = "that is not a regular file" if os.path.exists(file) else "there is no such file"
    raise ReadError("path", path, f"{problem} (seen from {Path.cwd()})")


def _reader(file: Path) -> Callable[[Path, Columns], pd.DataFrame]:
    """Choose the reader of a file by its ending.

    Raises:
        UserError: it has another ending.
    """
    suffixes = [s.lower() for s in file.suffixes]
    if suffixes and suffixes[-1] in OPENERS:
        suffixes.pop()
    ending = suffixes[-1] if suffixes else "(none)"
    if ending not in READERS:
        raise UserError(
            f"the ending {ending!r} is not one of {', '.join(READERS)}, alone or before {', '.join(OPENERS)}"
        )
    return READERS[ending]


def _read_tsv(file: Path, columns: Columns) -> pd.DataFrame:
    return read_csv(file, columns, "\t")


def _read_json_lines(file: Path, columns: Columns) -> pd.DataFrame:
    """Read a JSON object a line; a key that a line lacks is a missing value."""
    records: list[dict] = []
    available: dict[str, None] = {}
    with text_lines(file) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = _JSON.decode(line)
            except ValueError as error:
                raise UserError(f"line {number} is not JSON ({getattr(error, 'msg', error)})") from error
            if not isinstance(record, dict):
                raise UserError(f"line {number} is not a JSON object; give one object a line")
            available.update(dict.fromkeys(record))
            records.append(record)
    if not records:
        raise UserError("there are no rows")
    needed = columns.find(list(available))
    values = {c: [r.get(c) for r in records] for c in needed}
    return from_values(values, columns)


def _refuse_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make a JSON object; Python's json would silently keep the last value of a repeated key."""
    record = dict(pairs)
    if len(record) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {key[:MAX_SHOWN_CHARS]!r} is given more than once")
    return record


# A number keeps the form that it has in the file: it is a name here, not a quantity.
_JSON = json.JSONDecoder(
    object_pairs_hook=_refuse_repeated_keys,
    parse_float=str,
    parse_int=str,
    parse_constant=lambda name: None if name == "NaN" else name,
)


def _read_parquet(file: Path, columns: Columns) -> pd.DataFrame:
    needed = columns.find(pyarrow.parquet.read_schema(file).names)
    # Checksums, where the file has them, are verified only if asked for.
    table = pyarrow.parquet.read_table(file, columns=list(needed), page_checksum_verification=True)
    return from_arrow(table, columns)


READERS: dict[str, Callable[[Path, Columns], pd.DataFrame]] = {
    ".csv": read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}
