"""Write a report: for each series its tables and figures as files, and one page, index.html, that holds them all."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, PackageLoader

import bora
from bora.errors import UserError
from bora.lib.files import write_text_atomically
from bora.lib.names import format_tau, safe_names
from bora.report.answers import answers_table, find_answers
from bora.report.authors import Guesses, find_guesses
from bora.report.claims import Claim, judge_claims
from bora.report.drawing import drawing_style
from bora.report.evidence import Evidence
from bora.report.fonts import find_fonts
from bora.report.pictures import Picture, draw_figures, save_picture
from bora.report.series import Series, series_of
from bora.report.similarity import Similarity, compare_tasks, group_by
from bora.report.tables import ReportTable, claims_table, learned_table, table1, table2
from bora.report.variance import variance_table
from bora.report.voices import voices_table
from bora.runs.archive import RunRecord
from bora.runs.directory import BY_TASK, METRICS, RunDirectory

MAX_SHOWN = 20  # characters without a font that are listed


@dataclass(frozen=True)
class Section:
    """What a report says about one series, its name in links, and the folder of its files.

    `answers` has a table for each evaluation with answers, and its runs' pages: name → address.
    """

    label: str
    slug: str
    folder: Path
    evidence: Evidence
    claims: list[Claim]
    table1: ReportTable
    learned: ReportTable | None
    variance: ReportTable | None
    table2: ReportTable
    pictures: list[Picture]
    answers: list[tuple[ReportTable, dict[str, str]]]
    voices: ReportTable | None

    @property
    def n_still_improving(self) -> int:
        """The number of runs whose best epoch is the last that they were allowed."""
        return sum(
            run.summary["best_epoch"] == run.config["trainer.max_epochs"] for run in self.evidence.series.all_runs
        )

    @property
    def uneven_taus(self) -> list[float]:
        """Each τ that lacks a seed which another τ has."""
        series = self.evidence.series
        return [tau for tau in series.taus if len(series.at(tau)) < len(series.seeds)]

    @property
    def headline(self) -> str:
        """One sentence on which τ is best, how good it is, and how it compares with the limits."""
        evidence, best = self.evidence, self.evidence.best_tau
        perplexity = f"{evidence.measure} {evidence.over_seeds(best).value:.2f}"
        chosen = "was learned, the median over seeds" if evidence.series.only_learned else "is best on validation"
        parts = [f"τ = {format_tau(best)} {chosen}; {perplexity}"]
        for other, words in ((0.0, "separate models"), (math.inf, "one model")):
            difference = evidence.difference(best, other)
            if difference is not None:
                parts.append(f"{difference.percent:+.1f} % against {words} (τ = {format_tau(other)})")
        learned = evidence.learned_difference()
        if learned is not None:
            parts.append(f"τ learned: {learned.percent:+.1f} % against τ = {format_tau(best)}")
        return ", ".join(parts) + "."


def write_report(runs: list[RunRecord], problems: list[str], output: Path, column: str | None = None) -> list[Section]:
    """Write the report of the runs: index.html, and the series' files, in a folder for each if there are several.

    Args:
        problems: a line for each run that could not be read; lines on what is left out are added.
        column: column of the corpus's table by which to colour figure 6.
    """
    all_series, left_out = series_of(runs)
    problems += left_out
    slugs = safe_names(series.label for series in all_series)
    sections = []
    for series in all_series:
        folder = output / slugs[series.label] if len(all_series) > 1 else output
        folder.mkdir(parents=True, exist_ok=True)
        sections.append(_write_section(series, slugs[series.label], folder, output, column, problems))
    problems[:] = dict.fromkeys(problems)
    template = Environment(loader=PackageLoader("bora", "report"), autoescape=True).get_template("report.html.j2")
    page = template.render(
        sections=sections,
        problems=problems,
        n_runs=len(runs),
        date=date.today().isoformat(),
        version=bora.__version__,
        format_tau=format_tau,
    )
    write_text_atomically(output / "index.html", page)
    return sections


def _write_section(
    series: Series, slug: str, folder: Path, output: Path, column: str | None, problems: list[str]
) -> Section:
    evidence = Evidence(series)
    claims = judge_claims(evidence)
    tables = table1(evidence), learned_table(evidence), variance_table(evidence), table2(evidence)
    found = find_answers(evidence)
    answers = [(answers_table(name, own), _links(own, output)) for name, own in found.items()]
    voices = voices_table(evidence)
    for table in (*tables, claims_table(claims), *(table for table, _ in answers), voices):
        if table is not None:
            table.write(folder)
    similar = _compare_tasks(evidence, column, problems)
    fonts, missing = find_fonts([*evidence.tasks().index, *([] if similar is None else similar.names)])
    if missing:
        problems.append(f"figures: no installed font has {''.join(missing[:MAX_SHOWN])}; install one, such as Noto's")
    with drawing_style(fonts):
        curves = _read_curves(evidence, problems, METRICS, RunDirectory.validations)
        by_task = _read_curves(evidence, problems, BY_TASK, RunDirectory.by_task)
        drawn = draw_figures(evidence, similar, curves, by_task, _find_guesses(evidence, problems))
        pictures = [save_picture(folder, slug, *each) for each in drawn]
    return Section(series.label, slug, folder, evidence, claims, *tables, pictures, answers, voices)


def _links(found: list[tuple[float, Path, dict]], output: Path) -> dict[str, str]:
    """Map the runs' names to their pages of answers, as links from the report's page."""
    pages = {folder.parent.parent.name: folder / "answers.html" for _, folder, _ in found}
    return {name: quote(os.path.relpath(page, output)) for name, page in pages.items()}


def _compare_tasks(evidence: Evidence, column: str | None, problems: list[str]) -> Similarity | None:
    tau, found = evidence.best_middle_tau, None
    if tau is None:
        return None
    run = evidence.series.at(tau)[0]
    try:
        found = compare_tasks(run)
        return found if column is None else group_by(found, run, column)
    except UserError as error:
        problems.append(f"figure 6 {'is left out' if found is None else 'has no colours'}: {error}")
        return found


def _read_curves(
    evidence: Evidence, problems: list[str], file: str, read: Callable[[RunDirectory], pd.DataFrame]
) -> list[tuple[RunRecord, pd.DataFrame]]:
    """Read the validations of each run that has the file, which archives do not hold."""
    curves = []
    for run in evidence.series.all_runs:
        if (run.folder / file).is_file():
            try:
                curves.append((run, read(RunDirectory(run.folder))))
            except UserError as error:
                problems.append(f"the learning curves lack a run: {error}")
    return curves


def _find_guesses(evidence: Evidence, problems: list[str]) -> Guesses | None:
    try:
        return find_guesses(evidence)
    except UserError as error:
        problems.append(f"figure 10 is left out: {error}")
        return None
