"""A series as a section of the report: its sentences, tables and figures; and the page that holds them."""

import io
import math
import re
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from bora.report import figures
from bora.report.evidence import Claim, Evidence, claims, format_tau
from bora.report.series import Series
from bora.report.tables import ReportTable, claims_table, table1, table2
from bora.report.task_map import TaskMap


@dataclass(frozen=True)
class Picture:
    """A figure with its number, file name and the sentence below it."""

    number: int
    name: str
    figure: Figure
    caption: str

    @property
    def svg(self) -> str:
        """The figure as an svg element, to stand inside a page."""
        out = io.StringIO()
        with figures.mpl.rc_context(figures.STYLE):
            self.figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        text = out.getvalue()
        # Ids must not meet those of the other figures on the page.
        text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{self.name}-", text[text.index("<svg") :])
        return text

    def write(self, folder: Path) -> None:
        """NAME.png and NAME.pdf."""
        with figures.mpl.rc_context(figures.STYLE):
            self.figure.savefig(folder / f"{self.name}.png")
            self.figure.savefig(folder / f"{self.name}.pdf", metadata={"CreationDate": None})


@dataclass(frozen=True)
class Section:
    """What the report says about one series."""

    label: str
    evidence: Evidence
    headline: str
    paragraphs: list[str]
    claims: list[Claim]
    table1: ReportTable
    table2: ReportTable
    figures: list[Picture]
    provenance: str

    @property
    def slug(self) -> str:
        """The label as a folder's name."""
        return re.sub(r"[^\w.=]+", "-", self.label).strip("-")

    def write(self, folder: Path) -> None:
        """Tables as CSV, Markdown and LaTeX, figures as PNG and PDF."""
        folder.mkdir(parents=True, exist_ok=True)
        for table in (self.table1, self.table2, claims_table(self.claims)):
            table.write(folder)
        for picture in self.figures:
            picture.write(folder)


def build_section(series: Series, projection: TaskMap | None) -> Section:
    """Everything about one series."""
    evidence = Evidence(series)
    return Section(
        label=series.label,
        evidence=evidence,
        headline=headline(evidence),
        paragraphs=paragraphs(evidence),
        claims=claims(evidence),
        table1=table1(evidence),
        table2=table2(evidence),
        figures=pictures(evidence, projection),
        provenance=provenance(series),
    )


def headline(evidence: Evidence) -> str:
    """One sentence: which τ, how good, against the limits."""
    best = evidence.best_tau
    sentence = f"τ = {format_tau(best)} is best on validation; {evidence.measure} {evidence.over_seeds(best).value:.2f}"
    parts = []
    for other, words in ((0.0, "separate models"), (math.inf, "one model")):
        difference = evidence.difference(best, other)
        if difference is not None:
            words += f" (τ = {format_tau(other)})"
            parts.append(f"{difference.percent:+.1f} % against {words}")
    return sentence + (", " + " and ".join(parts) if parts else "") + "."


def paragraphs(evidence: Evidence) -> list[str]:
    """What a reader must know to read the tables."""
    series = evidence.series
    tasks, summary = evidence.tasks(), series.runs[0].summary
    low, high = tasks["n_train"].min(), tasks["n_train"].max()
    size = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    found = [
        f"{len(tasks)} tasks with {size} training documents each ({tasks['n_train'].sum():,} in all, "
        f"{tasks['train_tokens'].sum():,} scored tokens), tested on {tasks['n_test'].sum():,}. The frozen backbone "
        f"alone has a test perplexity of {summary['base_test_perplexity']:.2f}. Seeds: "
        f"{', '.join(map(str, series.seeds))}."
    ]
    unfinished = sum(run.summary["best_epoch"] == run.config["trainer.max_epochs"] for run in series.runs)
    if unfinished:
        found.append(
            f"{unfinished} of {len(series.runs)} runs were still improving when they reached their last epoch "
            "(trainer.max_epochs), so these have not shown all they can."
        )
    uneven = [t for t in series.taus if len(series.at(t)) < len(series.seeds)]
    if uneven:
        found.append(
            f"Not every τ has every seed: {', '.join(f'τ = {format_tau(t)}' for t in uneven)} "
            f"ha{'s' if len(uneven) == 1 else 've'} fewer. Means are over the seeds that are there; paired "
            "differences over those that both have."
        )
    if evidence.by_batch:
        found.append(
            "These runs follow the published code: padding is scored, and the perplexity shown is the code's own, "
            "exp of the mean over batches of a batch's mean over tasks, on validation documents."
        )
    return found


def pictures(evidence: Evidence, projection: TaskMap | None) -> list[Picture]:
    """Figures 1 to 6, as far as the runs give them."""
    middle = evidence.best_middle_tau
    at = "" if middle is None else f"τ = {format_tau(middle)}, the best of 0 < τ < ∞ on validation"
    found = [
        ("figure1", figures.sizes(evidence), "Number of documents of each task."),
        (
            "figure2",
            figures.perplexity_by_tau(evidence),
            "τ against perplexity: the thick line is the whole corpus, each thin grey line a task. Between 0 and the "
            "smallest τ the axis is linear; ∞ stands one decade beyond the largest.",
        ),
        (
            "figure3",
            figures.improvement(evidence),
            f"How much lower each task's perplexity is at {at} than with separate models and with one model, by "
            "training size. Above the line the hierarchical model is better.",
        ),
        ("figure4", figures.distances(evidence), f"How far each task is from the hierarchical mean at {at}."),
        ("figure5", figures.size_and_perplexity(evidence), "Training size and perplexity of each task."),
    ]
    if projection is not None:
        words = (
            f"The tasks by the first two principal components of θ_d − Θ at τ = {format_tau(projection.tau)}: tasks "
            "that lie together have moved away from Θ in the same direction."
        )
        if projection.column is not None and not math.isnan(projection.explained):
            words += (
                f" {projection.column} explains {projection.explained:.1%} of the variance in all dimensions; the same "
                f"groups dealt out at random explain {projection.by_chance:.1%} (permutation p = "
                f"{projection.p_value:.2g})."
            )
        found.append(("figure6", figures.task_map(projection), words))
    return [Picture(int(n[-1]), n, figure, words) for n, figure, words in found if figure is not None]


def provenance(series: Series) -> str:
    """Data hash, versions and folders."""
    summary = series.runs[0].summary
    versions = ", ".join(f"{name} {v}" for name, v in summary.get("versions", {}).items())
    folders = sorted({str(run.folder.parent) for run in series.runs})
    return f"In {', '.join(folders)}. Documents sha256 {summary['data_sha256']}. {versions}."


def page(sections: list[Section], problems: list[str], n_runs: int) -> str:
    """The HTML page: one file, nothing fetched from elsewhere."""
    template = Environment(loader=PackageLoader("bora", "report"), autoescape=True).get_template("report.html.j2")
    return template.render(
        sections=sections, problems=problems, n_runs=n_runs, date=date.today().isoformat(), version=version("bora")
    )
