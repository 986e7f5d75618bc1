"""Write a report: for each series its tables and figures as files, and one page, index.html, that holds them all."""

import io
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from urllib.parse import quote

import matplotlib as mpl
import pandas as pd
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

import bora
from bora.errors import UserError
from bora.lib.files import write_text_atomically
from bora.lib.names import format_tau, safe_names
from bora.report import figures
from bora.report.answers import answers_table, find_answers
from bora.report.authors import Guesses, find_guesses
from bora.report.claims import Claim, judge_claims
from bora.report.curves import MAX_PANELS, curves_by_task, learning_curves
from bora.report.drawing import STYLE
from bora.report.evidence import Evidence
from bora.report.series import Series, series_of
from bora.report.similarity import Similarity, compare_tasks, group_by
from bora.report.tables import ReportTable, claims_table, learned_table, table1, table2
from bora.report.variance import evidence_profile, variance_table
from bora.report.voices import voices_table
from bora.runs.archive import Run
from bora.runs.directory import BY_TASK, METRICS, RunDirectory

FORMATS: dict[str, dict] = {"png": {}, "pdf": {"CreationDate": None}}  # of a figure's files → metadata


@dataclass(frozen=True)
class Picture:
    """A figure as written: NAME.png and NAME.pdf, its title, an svg element for the page, and the sentence below it."""

    name: str
    title: str
    svg: str
    caption: str

    @property
    def number(self) -> str:
        return self.name.removeprefix("figure")


@dataclass(frozen=True)
class Section:
    """What a report says about one series, its name in links, and the folder of its files.

    `answers` has a table for each evaluation with answers, and the pages of its runs: name → address.
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
        """Count the runs whose best epoch is the last that they were allowed."""
        return sum(
            run.summary["best_epoch"] == run.config["trainer.max_epochs"] for run in self.evidence.series.all_runs
        )

    @property
    def uneven_taus(self) -> list[float]:
        """List each τ that lacks a seed which another τ has."""
        series = self.evidence.series
        return [tau for tau in series.taus if len(series.at(tau)) < len(series.seeds)]

    @property
    def headline(self) -> str:
        """Say in one sentence which τ is best, how good it is, and how it compares with the limits."""
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


def write_report(runs: list[Run], problems: list[str], output: Path, column: str | None = None) -> list[Section]:
    """Write the report of the runs: index.html, and the series' files; each in its folder if there are several.

    Args:
        problems: a line for each run that could not be read; lines on what is left out are added.
        column: of the corpus's table, to colour figure 6 by.
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
    with mpl.rc_context({**mpl.rcParamsDefault, **STYLE}):
        similar = _compare_tasks(evidence, column, problems)
        curves, by_task = (
            _read_curves(evidence, problems, METRICS, RunDirectory.validations),
            _read_curves(evidence, problems, BY_TASK, RunDirectory.by_task),
        )
        drawn = draw_figures(evidence, similar, curves, by_task, _find_guesses(evidence, problems))
        pictures = [_save(folder, slug, *each) for each in drawn]
    return Section(series.label, slug, folder, evidence, claims, *tables, pictures, answers, voices)


def _links(found: list[tuple[float, Path, dict]], output: Path) -> dict[str, str]:
    """Map the runs' names to their pages of answers, as the report's page reaches them."""
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
) -> list[tuple[Run, pd.DataFrame]]:
    """Read the validations of each run that has the file, which an archive does not hold."""
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


def draw_figures(
    evidence: Evidence,
    similar: Similarity | None,
    curves: list[tuple[Run, pd.DataFrame]],
    by_task: list[tuple[Run, pd.DataFrame]],
    guesses: Guesses | None,
) -> list[tuple[str, Figure, str]]:
    """Draw figures 1 to 12, as far as the runs give them: name, figure, caption."""
    middle = evidence.best_middle_tau
    at = "" if middle is None else f"τ = {format_tau(middle)}, the best of 0 < τ < ∞ on validation"
    beside = " The limits, τ = 0 and ∞, are drawn one decade beyond the values between them."
    has_limits = any(tau == 0 or math.isinf(tau) for tau in evidence.series.taus)
    drawn: list[tuple[str, Figure | None, str]] = [
        ("figure1", figures.sizes(evidence), "Number of documents of each task."),
        (
            "figure2",
            figures.perplexity_by_tau(evidence),
            "τ against perplexity: the thick line is the whole corpus, each thin grey line a task."
            + beside * has_limits,
        ),
        (
            "figure3",
            figures.improvement(evidence),
            f"How much lower each task's perplexity is at {at} than at the limits, by training size. Above the line the "
            "hierarchical model is better.",
        ),
        ("figure4", figures.distances(evidence), f"How far each task is from the hierarchical mean at {at}."),
        ("figure5", figures.size_and_perplexity(evidence), "Training size and perplexity of each task."),
    ]
    if similar is not None:
        caption = (
            f"The cosine of each two tasks' deviations from Θ at τ = {format_tau(similar.tau)}, less their mean; like "
            "tasks stand beside each other."
        )
        if similar.column is not None:
            caption += (
                f" {similar.column} explains {similar.explained:.1%} of the variance of the deviations; the same groups "
                f"dealt out at random explain {similar.by_chance:.1%} (permutation p = {similar.p_value:.2g})."
            )
        drawn.append(("figure6", figures.similarity(similar), caption))
    drawn += [
        (
            "figure7",
            figures.effects(evidence),
            f"How much lower the NLL of each task's test documents is under its own θ than under Θ, at {at}; 95 % "
            "intervals over documents."
            + " An empty circle is of one document."
            * bool((evidence.tasks()["n_test"] == 1).any()),
        ),
        (
            "figure8",
            figures.pooling(evidence),
            f"Each task alone, under one model, and at {at}, which borrows from both; larger points: more training "
            "documents.",
        ),
        (
            "figure9",
            learning_curves(evidence, curves),
            "Validation while training, a line a run; the circle is the epoch that the run kept."
            + " c is the factor by which validation shrinks the deviations (first seed); at the end it is chosen by task."
            * bool(evidence.series.learned),
        ),
        (
            "figure12",
            curves_by_task(evidence, by_task),
            f"Validation perplexity while training, of at most {MAX_PANELS} tasks, the largest, against the lowest that "
            "any of these runs reached on the task: at the best τ and the limits, one seed; circles: each run's best.",
        ),
    ]
    if guesses is not None:
        order = None if similar is None else [similar.tasks[i] for i in similar.order]
        drawn.append(("figure10", figures.authorship(evidence, guesses, order), _about_guesses(evidence, guesses)))
    profile = evidence_profile(evidence)
    if profile is not None:
        drawn.append(
            (
                "figure11",
                figures.profile(evidence, *profile),
                "Above, how well held-out text is predicted at each τ of the runs: τ for perplexity. Below, the "
                f"evidence, all of θ integrated over, by gradients of the run at τ = {format_tau(middle or 0)}: τ for "
                "inference. " + _about_range(profile[1]),
            )
        )
    return [(name, figure, caption) for name, figure, caption in drawn if figure is not None]


def _about_range(inferred: tuple[float, float]) -> str:
    low, high = (f"{tau:.2g}".replace("inf", "∞") for tau in inferred)
    if low == high:
        return f"It is {low} by both counts of the parameters that the data determine."
    return f"It lies in the grey range, {low} to {high}, between two counts of the parameters that the data determine."


def _about_guesses(evidence: Evidence, guesses: Guesses) -> str:
    found = guesses.summary["classification"]
    accuracy, low, high, chance = (100 * found[name] for name in ("accuracy", "low", "high", "chance"))
    caption = (
        f"{guesses.folder.name}: {found['n']:,} documents under {guesses.folder.parent.parent.name}. The likeliest task "
        f"is the true one for {accuracy:.1f} % [{low:.1f}, {high:.1f}] (95 % Wilson interval), by chance for "
        f"{chance:.2g} %. "
    )
    if not evidence.tasks().index.isin(guesses.truth).all():
        caption += "A grey row is a task without documents. "
    caption += (
        "Below, documents by the probability of their likeliest task: how often it is right, and n, their number; ECE is "
        "the expected calibration error"
    )
    if guesses.summary["temperature"] != 1:
        caption += f", {found['calibration_error_at_1']:.3f} by Bayes' rule without the run's temperature"
    return caption + "."


def _save(folder: Path, slug: str, name: str, figure: Figure, caption: str) -> Picture:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is found once, not for each format again
    for file_format, metadata in FORMATS.items():
        figure.savefig(folder / f"{name}.{file_format}", metadata=metadata)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = name_on_hover(svg[svg.index("<svg") :])
    # Ids must differ from those of all other figures on the page.
    svg = re.sub(r'( id="|href="#|="url\(#)', rf"\g<1>{slug}-{name}-", svg)
    return Picture(name, figure.get_suptitle() or figure.axes[0].get_title(loc="left"), svg, caption)


def name_on_hover(svg: str) -> str:
    """Turn links, as which `drawing.hover_names` gives names, into titles. Matplotlib has escaped them."""
    return re.sub(r"""<a xlink:href=(["'])(.*?)\1[^>]*>""", r"<g><title>\2</title>", svg).replace("</a>", "</g>")
