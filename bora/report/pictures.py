"""The figures of a series with their captions, as files and as parts of the page."""

import io
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from bora.lib.names import format_tau
from bora.report import figures
from bora.report.authors import Guesses
from bora.report.curves import MAX_PANELS, curves_by_task, learning_curves
from bora.report.evidence import Evidence
from bora.report.similarity import Similarity
from bora.report.variance import evidence_profile
from bora.runs.archive import RunRecord

FORMATS: dict[str, dict] = {"png": {}, "pdf": {"CreationDate": None}}  # file format of the figures → metadata


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


def draw_figures(
    evidence: Evidence,
    similar: Similarity | None,
    curves: list[tuple[RunRecord, pd.DataFrame]],
    by_task: list[tuple[RunRecord, pd.DataFrame]],
    guesses: Guesses | None,
) -> list[tuple[str, Figure, str]]:
    """Draw those of figures 1 to 12 that the runs allow; return name, figure and caption of each."""
    drawn: list[tuple[str, Figure, str]] = []

    def add(number: int, figure: Figure | None, *sentences: str) -> None:
        if figure is not None:
            drawn.append((f"figure{number}", figure, " ".join(sentences)))

    middle = evidence.best_middle_tau
    at = "" if middle is None else f"τ = {format_tau(middle)} (the best of 0 < τ < ∞ on validation)"
    add(1, figures.sizes(evidence), "Number of documents of each task.")
    beside = []
    if any(tau == 0 or math.isinf(tau) for tau in evidence.series.taus):
        beside = ["The limits, τ = 0 and ∞, are drawn one decade beyond the values between them."]
    whole = "Perplexity by τ: the thick line is the whole corpus, each thin grey line a task."
    add(2, figures.perplexity_by_tau(evidence), whole, *beside)
    gain = f"How much lower each task's perplexity is at {at} than at the limits, by training size."
    add(3, figures.improvement(evidence), gain, "Above the line the hierarchical model is better.")
    add(4, figures.distances(evidence), f"How far each task is from the hierarchical mean at {at}.")
    add(5, figures.size_and_perplexity(evidence), "Training size and perplexity of each task.")
    if similar is not None:
        cosine = "The cosine of each pair of tasks' deviations from Θ, minus their mean,"
        sentences = [cosine, f"at τ = {format_tau(similar.tau)}; similar tasks are next to each other."]
        if similar.column is not None:
            sentences += [
                f"{similar.column} explains {similar.explained:.1%} of the variance of the deviations; the same groups",
                f"assigned at random explain {similar.by_chance:.1%} (permutation p = {similar.p_value:.2g}).",
            ]
        add(6, figures.similarity(similar), *sentences)
    effect = f"How much lower the NLL of each task's test documents is under its own θ than under Θ, at {at};"
    alone = ["An empty circle is a task with one test document."] * bool((evidence.tasks()["n_test"] == 1).any())
    add(7, figures.effects(evidence), effect, "95 % intervals over documents.", *alone)
    pooled = f"Each task with a separate model, with one model for all, and at {at}, which borrows from both;"
    add(8, figures.pooling(evidence), pooled, "larger points have more training documents.")
    kept = "Validation perplexity during training, a line for each run; a circle is the epoch that the run kept."
    c = "c is the factor by which validation shrinks the deviations (first seed), at the end for each task."
    add(9, learning_curves(evidence, curves), kept, *[c] * bool(evidence.series.learned))
    largest = (
        f"Validation perplexity of the {MAX_PANELS} largest tasks or fewer, during training, divided by the lowest"
    )
    shown = "that any of these runs reached on the task: the best τ and the limits, one seed; circles: each run's best."
    add(12, curves_by_task(evidence, by_task), largest, shown)
    if guesses is not None:
        order = None if similar is None else [similar.tasks[i] for i in similar.order]
        add(10, figures.authorship(evidence, guesses, order), _about_guesses(evidence, guesses))
    if (profile := evidence_profile(evidence)) is not None:
        above = "Above, τ for perplexity: how well held-out text is predicted at each τ of the runs. Below, τ for"
        run = f"from gradients of the run at τ = {format_tau(middle or 0)}."
        below = f"inference: the evidence, with all of θ integrated out, {run}"
        add(11, figures.profile(evidence, *profile), above, below, _about_range(profile[1]))
    return drawn


def _about_range(inferred: tuple[float, float]) -> str:
    low, high = (f"{tau:.2g}".replace("inf", "∞") for tau in inferred)
    if low == high:
        return f"τ for inference is {low} by both counts of the parameters that the data determine."
    return (
        f"τ for inference lies in the grey range, {low} to {high}, between two counts of the parameters that the data "
        "determine."
    )


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


def save_picture(folder: Path, slug: str, name: str, figure: Figure, caption: str) -> Picture:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # compute the layout once instead of for each format
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
    """Turn the links that hold the names of `drawing.hover_names` into titles. Matplotlib has escaped them."""
    return re.sub(r"""<a xlink:href=(["'])(.*?)\1[^>]*>""", r"<g><title>\2</title>", svg).replace("</a>", "</g>")
