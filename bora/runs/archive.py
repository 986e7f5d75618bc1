"""Read finished runs from their folders, or from an archive of many runs, runs.csv.gz.

An archive has a row for each task of each run. Columns: run (its folder, relative to the archive's), `config.` and each
setting, `summary.` and each figure of summary.json, and those of per_task.csv. A cell is plain text or JSON, so values
are restored exactly, and the same runs always give the same bytes.
"""

import gzip
import io
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bora.config.schema import flatten
from bora.errors import UserError, first_line
from bora.lib.files import atomic_write
from bora.runs.directory import EVALUATIONS, SUMMARY, RunDirectory
from bora.runs.older import newer_settings
from bora.runs.values import read_json

ARCHIVE = "runs.csv.gz"
VERSIONS = "summary.versions."  # prefix of the columns of versions
NEEDED = ("run", "task", "summary.tau")


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A finished run.

    Attributes:
        folder: the run directory; for an archived run, its place relative to the archive.
        config: config.yaml, flat: {"prior.penalty": "gaussian", …}.
        summary: summary.json; infinite numbers as floats.
        per_task: per_task.csv, indexed by task.
    """

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    per_task: pd.DataFrame

    @property
    def tau(self) -> float:
        return self.summary["tau"]

    @property
    def seed(self) -> int:
        return self.summary["seed"]

    @property
    def learned(self) -> dict[str, Any] | None:
        """What tau=learn found, as in the summary; None for a run at a given τ."""
        return self.summary.get("learned")

    @property
    def is_limit(self) -> bool:
        """Whether τ was given as 0 or ∞, where every parameterisation is the same model."""
        return self.learned is None and (self.tau == 0 or math.isinf(self.tau))

    def evaluations(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield the folder and the summary of each evaluation in the run's folder."""
        for file in sorted((self.folder / EVALUATIONS).glob(f"*/{SUMMARY}")):
            yield file.parent, read_json(file)


def read_run(folder: Path) -> RunRecord:
    """Read a finished run's folder; see RunDirectory for what is raised."""
    directory = RunDirectory(folder)
    config = flatten(directory.config().model_dump())
    return RunRecord(folder, config, directory.summary(), directory.per_task().set_index("task"))


def write_archive(file: Path, runs: Sequence[RunRecord]) -> None:
    """Write the runs to a gzipped CSV file, sorted by their places.

    A run's place is its path relative to the archive's folder, or, if some runs are elsewhere, to their common folder.
    """
    folders = [run.folder.resolve() for run in runs]
    base = file.resolve().parent
    if not all(folder.is_relative_to(base) for folder in folders):
        base = Path(os.path.commonpath([folder.parent for folder in folders]))
    parts = []
    for folder, run in sorted(zip(folders, runs, strict=True), key=lambda pair: pair[0].relative_to(base).as_posix()):
        shared = {"run": folder.relative_to(base).as_posix()}
        shared |= {f"config.{key}": _to_cell(value) for key, value in run.config.items()}
        shared |= {f"summary.{key}": _to_cell(value) for key, value in run.summary.items() if key != "versions"}
        shared |= {f"{VERSIONS}{name}": version for name, version in run.summary["versions"].items()}
        own = run.per_task.map(_to_cell).rename_axis("task").reset_index()
        parts.append(pd.concat([pd.DataFrame(shared, index=own.index), own], axis=1))
    table = pd.concat(parts)
    named = [sorted(c for c in table.columns if c.startswith(prefix)) for prefix in ("config.", "summary.")]
    first = ["run", *named[0], *named[1]]
    text = table[[*first, *table.columns.difference(first, sort=False)]].to_csv(index=False, lineterminator="\n")
    with atomic_write(file) as out:
        out.write(gzip.compress(text.encode(), mtime=0))


def read_archive(file: Path) -> list[RunRecord]:
    """Read the runs of an archive; raise a UserError if the file is not an archive."""
    try:
        text = gzip.decompress(file.read_bytes()).decode()
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
        lacking = [name for name in NEEDED if name not in table]
        if lacking:
            raise ValueError(f"it has no column {lacking[0]}")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{file} is not an archive of runs: {first_line(error)}") from error
    return [_from_rows(file.parent / str(place), rows) for place, rows in table.groupby("run", sort=False)]


def _from_rows(folder: Path, rows: pd.DataFrame) -> RunRecord:
    """Build a run from its rows; a column without a value in the first row belongs to other runs."""
    first = {str(name): cell for name, cell in rows.iloc[0].items() if cell and name not in ("run", "task")}
    config, summary = (
        {name.removeprefix(prefix): _from_cell(cell) for name, cell in first.items() if name.startswith(prefix)}
        for prefix in ("config.", "summary.")
    )
    config |= newer_settings(config)
    summary = {key: value for key, value in summary.items() if not key.startswith("versions.")}
    summary["versions"] = {k.removeprefix(VERSIONS): v for k, v in first.items() if k.startswith(VERSIONS)}
    own = [name for name in first if not name.startswith(("config.", "summary."))]
    per_task = pd.DataFrame({name: [_from_cell(cell) for cell in rows[name]] for name in own})
    return RunRecord(folder, config, summary, per_task.set_index(pd.Index(rows["task"].tolist(), name="task")))


def _to_cell(value: Any) -> str:
    """Write a value as JSON, but a text without quotes if no other value is written like it."""
    if isinstance(value, str) and value.isprintable() and value and _from_cell(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _from_cell(cell: str) -> Any:
    """Read what `_to_cell` wrote."""
    try:
        return json.loads(cell)
    except ValueError:
        return cell
