"""Read any table of (task, text, date): CSV, TSV, JSON lines or Parquet."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow.parquet

from bora.data.columns import ANY, Columns, finish, text_table
from bora.data.csv_file import read_csv
from bora.data.streams import OPENERS, text_lines
from bora.errors import UserError


def read(path: str | Path, columns: Columns = ANY) -> pd.DataFrame:
    """Read only the needed columns, see `finish`.

    Args:
        path: .csv, .tsv, .jsonl (.ndjson) or .parquet; the first three also compressed (.gz, .bz2, .xz, .zst, .zip).

    Raises:
        UserError: there is no such file, it has another ending, or a row or column cannot be used.
        OSError, ValueError: the file is damaged; see `bora.data.errors.input_errors`.
    """
    file = require_file(path)
    ending = next((s for s in map(str.lower, reversed(file.suffixes)) if s not in OPENERS), "(none)")
    if ending not in READERS:
        raise UserError(
            f"the ending {ending!r} is not one of {', '.join(READERS)}, alone or before {', '.join(OPENERS)}"
        )
    return READERS[ending](file, columns)


def require_file(path: str | Path) -> Path:
    """Return the file of that name; raise a UserError if it does not exist."""
    file = Path(os.path.expanduser(path))
    if any("\ud800" <= character <= "\udfff" for character in str(file)):
        raise UserError("the file's name is not in the encoding of this locale; rename it, or set LC_ALL=C.UTF-8")
    if os.path.isfile(file):
        return file
    problem = "that is not a regular file" if os.path.exists(file) else "there is no such file"
    raise UserError(f"{problem} (seen from {Path.cwd()})")


def _read_json_lines(file: Path, columns: Columns) -> pd.DataFrame:
    """Read one JSON object from each line; a key that a line lacks is a missing value."""
    records: list[dict] = []
    available: dict[str, None] = {}
    for number, line in enumerate(text_lines(file), start=1):
        if not line.strip():
            continue
        try:
            record = _JSON.decode(line)
        except ValueError as error:
            raise UserError(f"line {number} is not JSON ({getattr(error, 'msg', error)})") from error
        if not isinstance(record, dict):
            raise UserError(f"line {number} is not a JSON object; give one object on each line")
        if columns.messages in record:  # in a chat, numbers stay numbers and null stays null
            chat = json.loads(line)[columns.messages]
            record[columns.messages] = chat if isinstance(chat, str | None) else json.dumps(chat, ensure_ascii=False)
        available.update(dict.fromkeys(record))
        records.append(record)
    found = columns.find(list(available))
    return finish(text_table([{c: [r.get(c) for r in records] for c in found.values()}], found))


def _refuse_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make a JSON object; for a repeated key Python's json would silently keep the last value."""
    record: dict[str, object] = {}
    for key, value in pairs:
        if key in record:
            raise ValueError(f"the key {key!r} is given more than once")
        record[key] = value
    return record


# A number keeps its form in the file, since here it is a name, not a quantity.
_JSON = json.JSONDecoder(
    object_pairs_hook=_refuse_repeated_keys,
    parse_float=str,
    parse_int=str,
    parse_constant=lambda name: None if name == "NaN" else name,
)


def _read_parquet(file: Path, columns: Columns) -> pd.DataFrame:
    # If the file has checksums, they are verified only on request.
    with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as parquet:
        found = columns.find(parquet.schema_arrow.names)
        return finish(text_table(parquet.iter_batches(columns=[*dict.fromkeys(found.values())]), found))


READERS: dict[str, Callable[[Path, Columns], pd.DataFrame]] = {
    ".csv": read_csv,
    ".tsv": partial(read_csv, separator="\t"),
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}
