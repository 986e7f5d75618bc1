"""Many finished runs in one file, runs.csv.gz: a row for each task of each run, read back to the same values.

Columns: run (its place among the others), `config.` and each setting, `summary.` and each figure of summary.json, and
those of per_task.csv. The same runs always give the same bytes.
"""

import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bora.errors import UserError, first_line
from bora.lib.files import atomic_write

ARCHIVE = "runs.csv.gz"
NEEDED = ("run", "task", "summary.tau", "summary.seed", "summary.data_sha256")
VERSIONS = "versions."
INFINITE = ("inf", "-inf", "nan")


class Record(NamedTuple):
    """One run of an archive.

    Attributes:
        run: its place among the others: grid/tau=10,seed=0.
        config: its settings, flat: {"prior.penalty": "gaussian", …}.
        summary: summary.json; infinite numbers as floats.
        per_task: per_task.csv, indexed by task.
    """

    run: str
    config: dict[str, Any]
    summary: dict[str, Any]
    per_task: pd.DataFrame


def write_archive(file: Path, records: Iterable[Record]) -> None:
    """Write the runs to a gzipped CSV file, sorted by their places."""
    parts = []
    for record in sorted(records, key=lambda record: record.run):
        versions = {VERSIONS + name: version for name, version in record.summary.get("versions", {}).items()}
        summary = {key: value for key, value in record.summary.items() if key != "versions"} | versions
        shared = {"run": record.run}
        shared |= {f"config.{key}": _to_cell(value) for key, value in record.config.items()}
        shared |= {f"summary.{key}": _to_cell(value) for key, value in summary.items()}
        own = record.per_task.map(_to_cell).rename_axis("task").reset_index()
        parts.append(pd.concat([pd.DataFrame(shared, index=own.index), own], axis=1))
    table = pd.concat(parts)
    settings, figures = (
        sorted(name for name in table.columns if name.startswith(part)) for part in ("config.", "summary.")
    )
    others = [name for name in table.columns if name not in {"run", *settings, *figures}]
    text = table[["run", *settings, *figures, *others]].to_csv(index=False, lineterminator="\n")
    with atomic_write(file) as out:
        out.write(gzip.compress(text.encode(), mtime=0))


def read_archive(file: Path) -> list[Record]:
    """Read the runs of an archive.

    Raises:
        UserError: the file is no archive of runs.
    """
    try:
        text = gzip.decompress(file.read_bytes()).decode()
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
        lacking = [name for name in NEEDED if name not in table]
        if lacking:
            raise ValueError(f"it has no column {lacking[0]}")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{file} is no archive of runs: {first_line(error)}") from error
    return [_record(str(run), rows) for run, rows in table.groupby("run", sort=False)]


def _record(run: str, rows: pd.DataFrame) -> Record:
    """Build a run from its rows; a column without a value in the first row is not this run's."""
    first = {str(name): cell for name, cell in rows.iloc[0].items() if cell}
    config = {k.removeprefix("config."): _from_cell(v) for k, v in first.items() if k.startswith("config.")}
    figures = {k.removeprefix("summary."): _from_cell(v) for k, v in first.items() if k.startswith("summary.")}
    summary = {k: v for k, v in figures.items() if not k.startswith(VERSIONS)}
    summary["versions"] = {k.removeprefix(VERSIONS): v for k, v in figures.items() if k.startswith(VERSIONS)}
    own = [k for k in first if not k.startswith(("config.", "summary.")) and k not in ("run", "task")]
    per_task = pd.DataFrame({name: [_from_cell(cell) for cell in rows[name]] for name in own})
    return Record(run, config, summary, per_task.set_index(pd.Index(rows["task"].tolist(), name="task")))


def _to_cell(value: Any) -> str:
    """Write a value as JSON, but a plain text without quotes and an infinite number as inf."""
    if isinstance(value, str) and value.isprintable() and value and _from_cell(value) == value:
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _from_cell(cell: str) -> Any:
    """Read what `_to_cell` wrote."""
    try:
        return float(cell) if cell in INFINITE else json.loads(cell)
    except ValueError:
        return cell
