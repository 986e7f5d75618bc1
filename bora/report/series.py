"""Runs read back from their directories, and sorted into series: the same experiment at several τ and seeds."""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from bora.config import flatten
from bora.errors import UserError
from bora.runs.archive import ARCHIVE, Record, read_archive
from bora.runs.directory import CONFIG, FAILED, SUMMARY, RunDirectory

# What may differ within a series. The documents are held to their hash, wherever the table lies.
FREE_KEYS = (
    "tau",
    "seed",
    "name",
    "init_from",
    "data.path",
    "logger.",
    "model.path",
    "model.attention",
    "model.compile",
    "trainer.log_every_n_steps",
    "sweep",
    "experiment",
)


@dataclass(frozen=True)
class Run:
    """A finished run as its files, or an archive of runs, have it.

    Attributes:
        folder: its directory; of an archived run, where it was beside the archive.
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
    def is_limit(self) -> bool:
        """τ is 0 or ∞, where every parameterisation is the same."""
        return self.tau == 0 or math.isinf(self.tau)

    @cached_property
    def setting(self) -> dict[str, Any]:
        """What all runs of a series share."""
        kept = {k: v for k, v in self.config.items() if not k.startswith(FREE_KEYS)}
        return kept | {
            "warm start": self.config.get("init_from") is not None,
            "model.dtype": self.summary.get("dtype"),  # the one that was taken, where auto was asked for
            "data_sha256": self.summary["data_sha256"],
        }


def read_run(folder: Path) -> Run:
    """A finished run.

    Raises:
        UserError: one of its files is missing or not readable.
    """
    directory = RunDirectory(folder)
    config = flatten(directory.config().model_dump())
    return Run(folder, config, directory.summary(), directory.per_task().set_index("task"))


def read_archived(file: Path) -> list[Run]:
    """Read the runs of an archive.

    Raises:
        UserError: it is not readable.
    """
    return [Run(file.parent / r.run, r.config, r.summary, r.per_task) for r in read_archive(file)]


def to_records(runs: list[Run], file: Path) -> list[Record]:
    """Turn runs into an archive's records.

    A run's place is its path from the folder of `file`, or, if some runs lie elsewhere, from their common folder.
    """
    folders = [run.folder.resolve() for run in runs]
    base = file.resolve().parent
    if not all(folder.is_relative_to(base) for folder in folders):
        base = Path(os.path.commonpath([folder.parent for folder in folders]))
    places = [folder.relative_to(base).as_posix() for folder in folders]
    return [Record(place, run.config, run.summary, run.per_task) for place, run in zip(places, runs, strict=True)]


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Read every finished run at or below the folders, and in archives; a line for each that is damaged or unfinished.

    A run that is in an archive and still has its folder is read from the folder.

    Raises:
        UserError: a folder is not there, or there is no finished run at all.
    """
    runs: list[Run] = []
    problems: list[str] = []
    seen: set[Path] = set()
    folders = list(folders)
    for top in folders:
        if not top.exists():
            raise UserError(f"{top}: there is no such folder or archive of runs")
        for folder in sorted({file.parent for name in (CONFIG, SUMMARY) for file in top.rglob(name)}):
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            if (folder / SUMMARY).is_file():
                try:
                    runs.append(read_run(folder))
                except UserError as error:
                    problems.append(str(error))
            elif not (folder / FAILED).is_file():
                problems.append(f"{folder} is unfinished; rerun the sweep's command to resume it")
        for failed in sorted(top.rglob(FAILED)):
            if not (failed.parent / SUMMARY).is_file():
                problems.append(f"{failed.parent} failed: {RunDirectory(failed.parent).failure()['error']}")
        for file in [top] if top.is_file() else sorted(top.rglob(ARCHIVE)):
            archived = [run for run in read_archived(file) if run.folder.resolve() not in seen]
            seen.update(run.folder.resolve() for run in archived)
            runs += archived
    if not runs:
        more = f" ({problems[0]})" if problems else ""
        raise UserError(f"no finished run in {', '.join(map(str, folders))}{more}")
    return runs, problems


@dataclass(frozen=True)
class Series:
    """Runs that differ in τ and seed alone, and the words that tell them from the other series."""

    label: str
    runs: list[Run]

    @property
    def taus(self) -> list[float]:
        """Every τ there is, in order."""
        return sorted({run.tau for run in self.runs})

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    def at(self, tau: float) -> list[Run]:
        """The runs at one τ, a seed each."""
        return [run for run in self.runs if run.tau == tau]


def series_of(runs: list[Run]) -> tuple[list[Series], list[str]]:
    """Sort runs into series; a line for each run that is left out because it is there twice.

    Runs at τ = 0 and ∞ do not depend on the parameterisation; they complete every series that
    shares all their other settings.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_key(run), []).append(run)
    # Groups of limits alone are not a series where they complete another.
    limits = {k: g for k, g in groups.items() if all(run.is_limit for run in g)}
    proper = {k: g for k, g in groups.items() if k not in limits}
    problems: list[str] = []
    for group in proper.values():
        wanted = _key(group[0], limit=True)
        for run in runs:
            if run.is_limit and _key(run, limit=True) == wanted and run not in group:
                group.append(run)
    used = {id(run) for group in proper.values() for run in group}
    proper |= {k: g for k, g in limits.items() if not all(id(run) in used for run in g)}
    series = []
    for group, label in zip(proper.values(), _labels(list(proper.values())), strict=True):
        chosen: dict[tuple[float, int], Run] = {}
        for run in group:
            first = chosen.setdefault((run.tau, run.seed), run)
            if first is not run and _key(first) == _key(run):
                problems.append(f"{run.folder} is left out: {first.folder} has the same settings, τ and seed already")
        series.append(Series(label, sorted(chosen.values(), key=lambda run: (run.tau, run.seed))))
    return series, problems


def _key(run: Run, limit: bool = False) -> str:
    setting = dict(run.setting)
    if limit:
        for key in ("prior.parameterization", "warm start"):
            setting.pop(key, None)
    return json.dumps(setting, sort_keys=True, default=str)


def _labels(groups: list[list[Run]]) -> list[str]:
    """corpus · model, and whatever else differs between the groups of that corpus and model."""
    settings = [next((r for r in g if not r.is_limit), g[0]).setting for g in groups]
    names = [f"{_corpus(g[0])} · {g[0].summary['model']}" for g in groups]
    labels = []
    for name, setting in zip(names, settings, strict=True):
        peers = [s for other, s in zip(names, settings, strict=True) if other == name]
        keys = sorted({k for s in peers for k in s} - {"data_sha256"})
        differing = [k for k in keys if len({json.dumps(s.get(k), default=str) for s in peers}) > 1]
        labels.append(" · ".join([name, *(f"{k}={_words(setting.get(k))}" for k in differing)]))
    if len(set(labels)) < len(labels):  # the same words for other documents
        labels = [f"{label} · {s['data_sha256'][:8]}" for label, s in zip(labels, settings, strict=True)]
    return labels


def _corpus(run: Run) -> str:
    """The corpus by name; a table by its file's."""
    name, path = str(run.summary["data"]), run.config.get("data.path")
    return Path(path).name.split(".")[0] if name == "table" and path else name


def _words(value: Any) -> str:
    return "null" if value is None else str(value)
