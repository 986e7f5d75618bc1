"""Sort runs into series: the same experiment at several τ and seeds."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from bora.errors import UserError
from bora.lib.names import format_tau
from bora.runs.archive import ARCHIVE, RunRecord, read_archive, read_run
from bora.runs.directory import CONFIG, FAILED, HOW_IT_RESUMES, METRICS, PER_TASK_COLUMNS, SUMMARY, RunDirectory

# Settings that may differ within a series. Documents are compared by their hash, wherever the table is.
FREE_KEYS = (
    *HOW_IT_RESUMES,
    "tau",
    "seed",
    "name",
    "init_from",
    "data.path",
    "data.url",
    "data.sha256",
    "logger.",
    "model.path",
    "model.attention",
    "model.compile",
    "model.cuda_graphs",
    "model.gradient_checkpointing",
    "trainer.log_every_n_steps",
)
FIGURES = "tau seed model data lr val_perplexity test_perplexity base_test_perplexity best_epoch data_sha256".split()
# Settings that distinguish two series only at given τ, and only at 0 < τ < ∞.
OF_LEVELS = ("tau of levels",)
OF_MIDDLE = ("prior.parameterization", "warm start", "data.levels", *OF_LEVELS)
MAX_VALUE_CHARS = 24  # of a setting's value in a label


def run_folders(top: Path) -> list[Path]:
    """List the folders at or below `top` that hold a run, finished or not; evaluations are not runs."""
    if not top.exists():
        raise UserError(f"{top}: there is no such folder or archive of runs")
    files = (file for name in (CONFIG, METRICS, FAILED) for file in top.rglob(name))
    return sorted({file.parent for file in files if not file.match("wandb/*/files/*")})


def read_runs(tops: Iterable[Path]) -> tuple[list[RunRecord], list[str]]:
    """Read all finished runs at or below the folders, and in archives; describe, a line each, those that cannot be read.

    A run that is in an archive and still has its folder is read from the folder.

    Raises:
        UserError: a folder does not exist, or there is no finished run at all.
    """
    runs: dict[Path, RunRecord | None] = {}
    problems: list[str] = []
    tops = list(tops)
    for top in tops:
        for folder in run_folders(top):
            place = folder.resolve()
            if place in runs:
                continue
            runs[place] = None
            try:
                runs[place] = _require_figures(_read_finished(folder))
            except UserError as error:
                problems.append(str(error))
        for file in [top] if top.is_file() else sorted(top.rglob(ARCHIVE)):
            try:
                for run in read_archive(file):
                    runs.setdefault(run.folder.resolve(), _require_figures(run))
            except UserError as error:
                problems.append(str(error))
    finished = [run for run in runs.values() if run is not None]
    if not finished:
        more = f" ({problems[0]})" if problems else ""
        raise UserError(f"no finished run in {', '.join(map(str, tops))}{more}")
    return finished, problems


def changed_files(tops: Iterable[Path]) -> Iterator[str]:
    """Yield a line for each file of a finished run that has changed since the run wrote it, by the run's SHA256SUMS."""
    for folder in (folder for top in tops for folder in run_folders(top)):
        if (folder / SUMMARY).is_file():
            try:
                yield from (f"{folder / name} is missing or was changed" for name in RunDirectory(folder).verify())
            except UserError as error:
                yield str(error)


def _read_finished(folder: Path) -> RunRecord:
    """Read a run; raise a UserError if it is damaged, failed or unfinished."""
    if (folder / SUMMARY).is_file():
        return read_run(folder)
    if (folder / FAILED).is_file():
        raise UserError(f"{folder} failed: {RunDirectory(folder).failure()['error']}")
    raise UserError(f"{folder} is unfinished; rerun the sweep's command to resume it")


def _require_figures(run: RunRecord) -> RunRecord:
    """Return the run if it has all that a report needs; otherwise raise a UserError that names what it lacks."""
    if "adapted_from" in run.summary:
        raise UserError(
            f"{run.folder} was made by bora adapt, which holds out no documents, so there is nothing to report"
        )
    lacking = [name for name in FIGURES if name not in run.summary]
    lacking += [name for name in PER_TASK_COLUMNS[1:] if name not in run.per_task]
    if lacking:
        raise UserError(f"{run.folder} lacks {', '.join(lacking)}, which a report needs")
    return run


@dataclass(frozen=True)
class Series:
    """Runs that differ only in τ and seed, and the label that distinguishes them from the other series.

    Attributes:
        runs: the runs at given τ; if there are none, those of `learned`, all at their median τ.
        learned: the runs with tau=learn.
    """

    label: str
    runs: list[RunRecord]
    learned: list[RunRecord]

    @property
    def only_learned(self) -> bool:
        """Whether all runs between the limits learned τ; False if there are none."""
        between = [run for run in self.runs if not run.is_limit]
        return bool(between) and all(run.learned is not None for run in between)

    @property
    def learned_beside(self) -> list[RunRecord]:
        """The runs that learned τ, if there are runs at given τ to compare them with."""
        return [] if self.only_learned else self.learned

    @property
    def all_runs(self) -> list[RunRecord]:
        """The runs at given τ, and those of `learned_beside`."""
        return [*self.runs, *self.learned_beside]

    @property
    def taus(self) -> list[float]:
        """All τ, in ascending order."""
        return sorted({run.tau for run in self.runs})

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    def at(self, tau: float) -> list[RunRecord]:
        """Return the runs at one τ, one for each seed."""
        return [run for run in self.runs if run.tau == tau]


def series_of(runs: list[RunRecord]) -> tuple[list[Series], list[str]]:
    """Sort runs into series; describe, a line each, runs that are left out because another one is the same.

    Runs at τ = 0 and ∞ do not depend on the parameterisation, and have no levels; they complete every series that shares
    all their other settings, and form a separate series if there is none.
    """
    learned = [run for run in runs if run.learned is not None]
    given = [run for run in runs if run.learned is None]
    # Learned runs form a separate series only if there is none at given τ.
    runs = given + _at_their_median(learned, {_key(run, *OF_LEVELS) for run in given})
    with_middle = {_key(run, *OF_MIDDLE) for run in runs if not run.is_limit}
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        if not run.is_limit or _key(run, *OF_MIDDLE) not in with_middle:
            groups.setdefault(_key(run, *(OF_MIDDLE if run.is_limit else ())), []).append(run)
    series, problems = [], []
    for (key, group), label in zip(groups.items(), _labels([group[0] for group in groups.values()]), strict=True):
        wanted = _key(group[0], *OF_MIDDLE)
        limits = [run for run in runs if run.is_limit and run not in group and _key(run, *OF_MIDDLE) == wanted]
        chosen: dict[tuple[float, int], RunRecord] = {}
        for run in [*group, *sorted(limits, key=lambda run: _key(run) != key)]:  # those of the same form first
            first = chosen.setdefault((run.tau, run.seed), run)
            if first is not run and _key(first) == _key(run):
                problems.append(f"{run.folder} is left out: {first.folder} has the same settings, τ and seed")
        same = _key(group[0], *OF_LEVELS)
        beside = sorted((run for run in learned if _key(run, *OF_LEVELS) == same), key=lambda run: run.seed)
        series.append(Series(label, sorted(chosen.values(), key=lambda run: (run.tau, run.seed)), beside))
    return series, list(dict.fromkeys(problems))


def _at_their_median(learned: list[RunRecord], given: set[str]) -> list[RunRecord]:
    """Set τ of learned runs to their median, in each series without runs at given τ, so that seeds can be averaged.

    Seeds for which validation prefers one model, τ = ∞, are ignored, unless all do.

    Args:
        given: the keys of the series that have runs at given τ.
    """
    series: dict[str, list[RunRecord]] = {}
    for run in learned:
        if _key(run, *OF_LEVELS) not in given:
            series.setdefault(_key(run), []).append(run)
    found = []
    for own in series.values():
        tau = float(f"{median([run.tau for run in own if math.isfinite(run.tau)] or [math.inf]):.3g}")
        found += [replace(run, summary=run.summary | {"tau": tau}) for run in own]
    return found


def _setting(run: RunRecord) -> dict[str, Any]:
    """Return the settings that all runs of a series share."""
    return {k: v for k, v in run.config.items() if not k.startswith(FREE_KEYS)} | {
        "warm start": run.config["init_from"] is not None,
        "tau of levels": _tau_of_levels(run),
        "model.dtype": run.summary.get("dtype"),  # the one that auto chose
        "data_sha256": run.summary["data_sha256"],
        "n_tokens": run.summary.get("n_tokens"),  # differs for the same documents if the tokenizer has changed
    }


def _tau_of_levels(run: RunRecord) -> Any:
    """Return the τ of each level as text: a word if it equals the tasks' or is learned, since it then varies with τ."""
    taus = run.summary.get("levels")
    if run.learned is not None:
        return "learned"
    if not taus:
        return None
    if set(taus.values()) == {run.tau}:
        return "the tasks'"
    return ", ".join(f"{level} {format_tau(tau)}" for level, tau in taus.items())


def _key(run: RunRecord, *without: str) -> str:
    """Write a run's settings, except the keys `without`, as text that is equal for runs of one series."""
    return json.dumps({k: v for k, v in _setting(run).items() if k not in without}, sort_keys=True)


def _labels(firsts: list[RunRecord]) -> list[str]:
    """Name each series, given a run of each, by corpus, model, and what distinguishes it from others with the same."""
    settings = [_setting(run) for run in firsts]
    names = [f"{_corpus(run)} · {run.summary['model']}" for run in firsts]
    labels = []
    for name, setting in zip(names, settings, strict=True):
        peers = [s for other, s in zip(names, settings, strict=True) if other == name]
        keys = sorted({key for peer in peers for key in peer} - {"data_sha256"})
        differing = [key for key in keys if len({json.dumps(peer.get(key)) for peer in peers}) > 1]
        labels.append(" · ".join([name, *(_words(key, setting.get(key)) for key in differing)]))
    if len(set(labels)) < len(labels):  # the same words for different documents
        labels = [f"{label} · {s['data_sha256'][:8]}" for label, s in zip(labels, settings, strict=True)]
    return labels


def _corpus(run: RunRecord) -> str:
    """Name the corpus; a table by its file's name."""
    name, path = str(run.summary["data"]), run.config.get("data.path")
    return Path(path).name.split(".")[0] if name == "table" and path else name


def _words(key: str, value: Any) -> str:
    if key in OF_LEVELS and value in (None, "learned"):
        return f"τ {value or 'given'}"
    words = "null" if value is None else str(value)
    return f"{key}={words if len(words) <= MAX_VALUE_CHARS else f'{words[: MAX_VALUE_CHARS - 1]}…'}"
