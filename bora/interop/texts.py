"""New text for a finished run: a table as bora.data.table reads it, whose column of tasks may be missing."""

import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from bora.data.table import COMPRESSIONS, TASK_COLUMNS, UNREADABLE, open_stream, read
from bora.errors import InputError, first_line

# The reader's messages name the keys of a run's config; here they are flags.
FLAGS = {"data.path=": "--data ", "data.task=": "--task ", "data.text=": "--text "}
SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_texts(path: Path, text: str, task: str | None) -> tuple[pd.DataFrame, str | None]:
    """Read the texts and, where there is such a column, their tasks.

    Args:
        path: see bora.data.table.read.
        text: column that holds the document.
        task: column that names the task; None for the first of task and rep_name that is there, if any.

    Returns:
        Columns `task` (empty where nothing is known) and `text`, the index counting the table's rows from 0;
        and the name of the column of tasks, None without one.

    Raises:
        InputError: see bora.data.table.read.
    """
    file = Path(path).expanduser()
    try:
        columns = _columns(file)
        if task is None:
            task = next((name for name in TASK_COLUMNS if name in columns and name != text), None)
        if task is None and text in columns:
            return pd.DataFrame({"task": "", "text": _texts(file, text)}, dtype=str), None
        # Also where the file is missing, of another kind or without that column: `read` says which.
        return read(str(path), task=task or columns[0], text=text)[["task", "text"]], task
    except InputError as error:
        message = str(error)
        for key, flag in FLAGS.items():
            message = message.replace(key, flag)
        raise InputError(message) from error
    except UNREADABLE as error:
        raise InputError(
            f"--data {path} is not readable as {file.name!r} says: {first_line(error)}"
        ) from error


def sha256(table: pd.DataFrame) -> str:
    """Of every row: one JSON line [row, task, text] each."""
    digest = hashlib.sha256()
    for row, task, text in zip(table.index, table["task"], table["text"], strict=True):
        digest.update(json.dumps([int(row), task, text]).encode() + b"\n")
    return digest.hexdigest()


def _kind(file: Path) -> tuple[str, str | None]:
    """The format's ending and the compression."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    compression = COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    suffixes = suffixes[:-1] if compression else suffixes
    return (suffixes[-1] if suffixes else ""), compression


def _columns(file: Path) -> list[str]:
    """The table's columns; a name that no table has where the file is missing or of another kind."""
    ending, _ = _kind(file)
    if not file.is_file() or ending not in (*SEPARATORS, ".jsonl", ".ndjson", ".parquet"):
        return [""]
    if ending == ".parquet":
        return [str(name) for name in pa.parquet.read_schema(file).names]
    if ending in SEPARATORS:
        return next(_rows(file), [""])
    return list(dict.fromkeys(key for record in _records(file) for key in record))


def _texts(file: Path, text: str) -> list[str]:
    """The column `text`, as it stands; an empty string for a cell that holds nothing."""
    ending, _ = _kind(file)
    if ending == ".parquet":
        column = pa.parquet.read_table(file, columns=[text])[text]
        return column.cast(pa.large_string()).fill_null("").to_pylist()
    if ending in SEPARATORS:
        rows = _rows(file)
        header = next(rows)
        if header.count(text) > 1:
            raise InputError(f"--data {file} has more than one column {text!r}; rename them")
        texts = []
        for number, row in enumerate(rows, start=1):
            if len(row) != len(header):
                raise InputError(
                    f"--data {file}: row {number} has {len(row)} cells, the header {len(header)}"
                )
            texts.append(row[header.index(text)])
    else:
        found = [record.get(text) for record in _records(file)]
        texts = [
            ""
            if value is None
            else value
            if isinstance(value, str)
            else json.dumps(value, ensure_ascii=False)
            for value in found
        ]
    if not texts:
        raise InputError(f"--data {file} holds no rows")
    return texts


def _rows(file: Path) -> Iterator[list[str]]:
    """The header and the rows of a CSV or TSV file; strict: a quote that is never closed is an error."""
    ending, compression = _kind(file)
    csv.field_size_limit(sys.maxsize)  # documents may be longer than the 131,072 characters that csv allows
    with open_stream(file, compression) as stream:
        lines = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        yield from filter(None, csv.reader(lines, delimiter=SEPARATORS[ending], strict=True))


def _records(file: Path) -> Iterator[dict]:
    """The objects of a JSON lines file."""
    _, compression = _kind(file)
    with open_stream(file, compression) as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, "utf-8-sig"), start=1):
            if line.strip():
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise InputError(f"--data {file}: line {number} is not a JSON object")
                yield record
