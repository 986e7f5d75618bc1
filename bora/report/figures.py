"""Draw figures 1 to 8, 10 and 11: 1 to 5 as in the paper, 6 to 8 to compare tasks, 10 on who wrote a text, 11 on τ for
inference. Those on training, 9 and 12, are in bora.report.curves.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from bora.lib.names import format_tau
from bora.report.authors import Guesses
from bora.report.drawing import (
    BLACK,
    BLUE,
    GREY,
    GROUPS,
    LIGHT,
    MAX_AXIS_NAMES,
    VERMILION,
    WIDTH,
    canvas,
    hover_names,
    put_legend_above,
    set_logarithmic,
    set_size_axis,
    set_task_axis,
    shorten,
    write_names,
)
from bora.report.evidence import Evidence, place_taus, rank_correlation
from bora.report.intervals import Interval
from bora.report.similarity import Similarity
from bora.train.authorship import N_BINS, calibration_error

DIVERGING = "PuOr"  # the middle is white
MAX_TICKS = 13
RING: dict[str, Any] = {"ms": 12, "mfc": "none", "mec": VERMILION, "mew": 1.8}  # marks what validation chose


def sizes(evidence: Evidence) -> Figure:
    """Draw figure 1: documents per task; training dark, validation and test light."""
    tasks = evidence.tasks().sort_values("n_train", kind="stable")
    n, train = len(tasks), tasks["n_train"].to_numpy()
    total = train + (tasks["n_val"] + tasks["n_test"]).to_numpy()
    if n <= MAX_AXIS_NAMES:
        figure, ax = canvas(max(2.2, 1.0 + 0.2 * n))
        ax.barh(np.arange(n), train, color=BLUE, height=0.72, label="training")
        ax.barh(np.arange(n), total - train, left=train, color=LIGHT, height=0.72, label="validation and test")
        set_task_axis(ax, tasks.index)
        ax.set_xlabel("documents")
    else:
        figure, ax = canvas()
        place = np.arange(n, 0, -1)
        ax.fill_between(place, total, color=LIGHT, step="mid", label="validation and test", linewidth=0)
        ax.fill_between(place, train, color=BLUE, step="mid", label="training", linewidth=0)
        ax.set(xlim=(0.5, n + 0.5), ylim=(0, None), xlabel="task, by size", ylabel="documents")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    ax.set_title("Documents per task")
    put_legend_above(ax, right=n <= MAX_AXIS_NAMES)
    return figure


def perplexity_by_tau(evidence: Evidence) -> Figure | None:
    """Draw figure 2: perplexity by τ; a thick line overall, a thin grey line for each task; None with a single τ."""
    taus, best = evidence.series.taus, evidence.best_tau
    if len(taus) < 2:
        return None
    x = np.array(place_taus(taus))
    figure, ax = canvas()
    by_task = evidence.task_means().to_numpy()
    few = len(by_task) <= MAX_AXIS_NAMES
    lines = ax.plot(x, by_task.T, color=GREY, linewidth=0.9 if few else 0.5, alpha=0.55 if few else 0.3)
    lines[0].set_label("a task")
    for line, name in zip(lines, hover_names(evidence.task_means().index), strict=False):
        line.set_url(name)
    overall = [evidence.over_seeds(tau) for tau in taus]
    y = np.array([o.value for o in overall])
    ax.plot(x, y, color=BLACK, linewidth=2.6, marker="o", markersize=5, label="all tasks")
    half = y - np.array([o.low for o in overall])
    if np.isfinite(half).any():
        ax.errorbar(x, y, half, fmt="none", ecolor=BLACK, elinewidth=1.2, capsize=3, label="95 %, over seeds")
    at, ring = taus.index(best), f"τ = {format_tau(best)}, by validation"
    ax.plot(x[at], y[at], "o", label=ring, **RING)
    if learned := evidence.series.learned_beside:
        mean = np.mean([run.summary["test_perplexity"] for run in learned])
        ax.axhline(mean, color=BLUE, linewidth=1.4, linestyle="--", label="τ learned")
    # Searches put τ anywhere: leave out ticks that would overlap others, except those at the ends.
    ticks: list[int] = []
    for i in (0, len(x) - 1, *range(1, len(x) - 1)):
        if all(abs(x[i] - x[j]) >= np.ptp(x) / MAX_TICKS for j in ticks):
            ticks.append(i)
    ax.set_xticks(x[ticks], [format_tau(taus[i]) for i in ticks])
    set_logarithmic(ax, "y")
    ax.set(xlabel="precision τ", ylabel=evidence.measure.split(" as ")[0], title="Perplexity by τ")
    put_legend_above(ax, columns=3)
    return figure


def improvement(evidence: Evidence) -> Figure | None:
    """Draw figure 3: training size against the relative improvement over τ = 0 and over one model."""
    tau, n = evidence.best_middle_tau, evidence.tasks()["n_train"]
    figure, ax = canvas()
    limits = [(0.0, "separate models (τ = 0)", BLUE, "o"), (math.inf, "one model (τ = ∞)", VERMILION, "D")]
    points: list[tuple[str, float, float]] = []
    bars: list[tuple[pd.DataFrame, str]] = []
    for other, words, color, marker in limits:
        difference = None if tau is None else evidence.difference(tau, other)
        if difference is None:
            continue
        y = difference.improvement
        rho = rank_correlation(n, y).value
        label = f"over {words}" + ("" if math.isnan(rho) else f", ρ = {Interval(rho):+.2f}")
        how: dict[str, Any] = {"color": color, "alpha": 0.85, "linewidth": 0, "label": label}
        ax.scatter(n, y, s=30, marker=marker, urls=hover_names(y.index), **how)
        # Not for many tasks, nor for tasks of one size: the bars would overlap.
        if len(y) <= MAX_AXIS_NAMES and n.nunique() > 1 and (ends := difference.improvement_ends) is not None:
            bars.append((ends, color))
        points += [(str(task), n[task], y[task]) for task in y.index]
    if tau is None or not points:
        return None
    ax.axhline(0, color=BLACK, linewidth=0.9)
    set_size_axis(ax, n)
    ax.set(ylabel="reduction of perplexity, %", title=f"What τ = {format_tau(tau)} gains for each task")
    put_legend_above(ax)
    if bars:
        _draw_bars(ax, n, bars)
    write_names(figure, ax, points)
    return figure


def _draw_bars(ax: Axes, n: pd.Series, bars: list[tuple[pd.DataFrame, str]]) -> None:
    """Draw thin, light intervals. With few seeds they are long, so they get at most as much of the axis as the points."""
    low, high = ax.get_ylim()
    for ends, color in bars:
        ax.vlines(n[ends.index], ends["low"], ends["high"], color=color, linewidth=0.8, alpha=0.4, zorder=1)
    below, above, room = *ax.get_ylim(), (high - low) / 2
    ax.set_ylim(max(below, low - room), min(above, high + room, 105))  # none can gain more than 100 %
    ax.set_title("bars: 95 % t intervals over seeds", loc="right", fontsize=9, pad=26)


def distances(evidence: Evidence) -> Figure | None:
    """Draw figure 4: training size against ‖θ_d − Θ‖."""
    tau = evidence.best_middle_tau
    if tau is None:
        return None
    distance = evidence.by_task(tau, "distance").mean(axis=1)
    title = f"Distance to the hierarchical mean at τ = {format_tau(tau)}"
    return _scatter(evidence.tasks()["n_train"], distance, "distance from Θ, parameter units", title)


def size_and_perplexity(evidence: Evidence) -> Figure:
    """Draw figure 5: training size against perplexity at the τ that validation chooses."""
    tau = evidence.best_tau
    title = f"Training size and perplexity at τ = {format_tau(tau)}"
    y = evidence.by_task(tau).mean(axis=1)
    return _scatter(evidence.tasks()["n_train"], y, evidence.measure.split(" as ")[0], title)


def _scatter(n: pd.Series, y: pd.Series, label: str, title: str) -> Figure:
    figure, ax = canvas()
    ax.scatter(n, y, s=30, color=BLUE, alpha=0.85, linewidth=0, urls=hover_names(y.index))
    set_size_axis(ax, n)
    ax.set(ylabel=label, title=title)
    rho = rank_correlation(n, y)
    if not math.isnan(rho.value):
        ax.set_title(f"Spearman's ρ {rho:+.2f}", loc="right", fontsize=9)
    write_names(figure, ax, [(str(task), n[task], y[task]) for task in y.index])
    return figure


def similarity(found: Similarity) -> Figure:
    """Draw figure 6: the cosine of each pair of tasks' deviations, with similar tasks next to each other."""
    n = len(found.tasks)
    figure, ax = canvas(min(5.6, max(3.6, 1.4 + 0.17 * n)))
    cosines = found.cosines[np.ix_(found.order, found.order)].copy()
    np.fill_diagonal(cosines, np.nan)  # a task's cosine with itself is 1, which would outshine all others
    chance = -1 / (n - 1)  # for deviations with nothing in common, after subtracting their mean
    bound = float(np.nanmax(np.abs(cosines - chance))) or 1.0
    image = ax.imshow(cosines, cmap=DIVERGING, vmin=chance - bound, vmax=chance + bound, interpolation="nearest")
    figure.colorbar(image, ax=ax, shrink=0.8, label="cosine of the deviations from Θ")
    _set_map_axes(ax, [shorten(found.tasks[i], 28) for i in found.order])
    ax.set_title(f"Which tasks deviate alike at τ = {format_tau(found.tau)}")
    if found.groups is not None:
        _draw_groups(figure, ax, found.groups.iloc[found.order], str(found.column))
    return figure


def _set_map_axes(ax: Axes, names: list[str]) -> None:
    """Name the rows of a square map of tasks if there are not too many, so small that no two names touch."""
    n = len(names)
    named = n <= MAX_AXIS_NAMES
    ax.set_yticks(np.arange(n) if named else [], names if named else [], fontsize=min(7.5, 290 / n))
    ax.set_xticks([])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def _draw_groups(figure: Figure, ax: Axes, groups: pd.Series, column: str) -> None:
    """Draw a strip along the bottom with the colour of each task's group."""
    counts = groups.value_counts()
    shown = counts.index[: len(GROUPS) if len(counts) <= len(GROUPS) else len(GROUPS) - 1]
    colors = dict(zip(shown, GROUPS, strict=False))
    size = max(2.0, min(7.0, 220 / len(groups)))
    mark: dict[str, Any] = {"marker": "s", "ms": size, "linewidth": 0, "clip_on": False}
    for place, group in enumerate(groups):
        ax.plot(place, -0.02, color=colors.get(group, LIGHT), transform=ax.get_xaxis_transform(), **mark)
    for group, color in colors.items():
        # Matplotlib leaves out labels that begin with an underscore.
        ax.plot([], [], "s", color=color, label=" " * group.startswith("_") + shorten(group, 28))
    if len(counts) > len(shown):
        ax.plot([], [], "s", color=LIGHT, label=f"{len(counts) - len(shown)} others")
    lengths = [len(str(group)) for group in colors]
    columns = max(1, min(4, 72 // (8 + min(28, max(lengths)))))
    figure.legend(*ax.get_legend_handles_labels(), title=shorten(column), loc="outside lower left", ncols=columns)


def effects(evidence: Evidence) -> Figure | None:
    """Draw figure 7: how much better each task's own θ is than Θ on its test documents, with 95 % intervals."""
    tau = evidence.best_middle_tau
    if tau is None or any("effect" not in run.per_task for run in evidence.series.at(tau)):
        return None
    effect = evidence.by_task(tau, "effect").mean(axis=1).sort_values(kind="stable")
    quantile = pd.Series(stats.t.ppf(0.975, evidence.tasks()["n_test"] - 1), evidence.tasks().index)
    half = (quantile * evidence.by_task(tau, "effect_error").mean(axis=1))[effect.index].fillna(0.0)
    n = len(effect)
    named = n <= MAX_AXIS_NAMES
    figure, ax = canvas(max(2.4, 1.0 + 0.2 * n) if named else 5.6)
    place = np.arange(n)
    ax.axvline(0, color=BLACK, linewidth=0.9)
    width, size, names = 1.6 if named else 0.6, 20 if named else 3, hover_names(effect.index)
    ax.hlines(place, effect - half, effect + half, color=BLUE, linewidth=width, alpha=0.6, urls=names)
    alone = (evidence.tasks()["n_test"][effect.index] == 1).tolist()  # one document has no interval
    ax.scatter(effect, place, s=size, c=np.where(alone, "white", BLUE), edgecolors=BLUE, zorder=2, urls=names)
    set_task_axis(ax, effect.index)
    ax.set(xlabel="nats a token better than under Θ", title=f"What each task's own θ is worth at τ = {format_tau(tau)}")
    return figure


def pooling(evidence: Evidence) -> Figure | None:
    """Draw figure 8: each task's perplexity with separate models, in between, and with one model."""
    between, taus = evidence.best_middle_tau, evidence.series.taus
    if between is None or 0.0 not in taus or math.inf not in taus:
        return None
    means, n_train = evidence.task_means(), evidence.tasks()["n_train"]
    order = means[between].sort_values(ascending=False, kind="stable").index
    named = len(order) <= MAX_AXIS_NAMES
    figure, ax = canvas(max(2.6, 1.2 + 0.2 * len(order)) if named else 5.6)
    place = np.arange(len(order))
    shown = means.loc[order, [0.0, between, math.inf]]
    low, high = shown.min(axis=1), shown.max(axis=1)
    names = hover_names(order)
    ax.hlines(place, low, high, color=LIGHT, linewidth=1.4 if named else 0.7, zorder=0, urls=names)
    size = 16 + 64 * (n_train[order] / n_train.max()) if named else 5
    for tau, color, marker, words in (
        (0.0, BLUE, "o", "separate models (τ = 0)"),
        (math.inf, VERMILION, "D", "one model (τ = ∞)"),
        (between, BLACK, "o", f"τ = {format_tau(between)}"),
    ):
        how: dict[str, Any] = {"color": color, "marker": marker, "linewidth": 0, "label": words}
        ax.scatter(means.loc[order, tau], place, s=size, urls=names, **how)
    set_task_axis(ax, order)
    set_logarithmic(ax, "x")
    ax.set(xlabel=evidence.measure.split(" as ")[0], title="From separate models to one")
    put_legend_above(ax, columns=3, right=True)
    return figure


def authorship(evidence: Evidence, guesses: Guesses, order: list[str] | None) -> Figure:
    """Draw figure 10: which task each task's documents are taken for, and how often the model is right by how sure it is.

    Tasks are in the given order; None orders them by size.
    """
    tasks = order or [str(task) for task in evidence.tasks().sort_values("n_train", ascending=False).index]
    height = max(3.0, min(5.2, 0.9 + 0.17 * len(tasks)))
    figure = Figure(figsize=(WIDTH, height + 3.0))
    above, below = figure.subplots(2, height_ratios=[height, 3.0])
    image = above.imshow(guesses.confusion(tasks), cmap="Blues", vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=above, shrink=0.8, label="share of the row")
    _set_map_axes(above, [shorten(task, 22) for task in tasks])
    above.set_facecolor(LIGHT)
    above.set(xlabel="likeliest task, in the same order", ylabel="true task", title="Who wrote it")
    _draw_reliability(below, guesses)
    return figure


def _draw_reliability(ax: Axes, guesses: Guesses) -> None:
    ax.plot([0, 1], [0, 1], color=LIGHT, linewidth=1.4)
    bins = guesses.reliability()
    ax.plot(bins["probability"], bins["accuracy"], "o-", color=BLACK, ms=5, linewidth=1.6)
    ax.text(-0.01, 1.06, "n =", ha="right", va="bottom", fontsize=7.5, color="#4d4d4d")
    for i, count in zip(bins.index.to_numpy(int), bins["n"], strict=True):
        ax.text((i - 0.5) / N_BINS, 1.06, f"{count:,}", ha="center", va="bottom", fontsize=7.5, color="#4d4d4d")
    ax.set(xlim=(0, 1), ylim=(-0.03, 1.03), xticks=np.linspace(0, 1, N_BINS + 1))
    ax.set(xlabel="probability of the likeliest task", ylabel="how often it is right")
    ax.set_title(f"How sure and how right: ECE {calibration_error(guesses.probability, guesses.right):.3f}", pad=18)


def profile(evidence: Evidence, curve: pd.DataFrame, inferred: tuple[float, float]) -> Figure:
    """Draw figure 11: the support for each τ by validation, and by the evidence.

    Args:
        curve: tau, evidence; see bora.report.variance.
        inferred: the two ends of τ for inference.
    """
    figure = Figure(figsize=(WIDTH, 5.6))
    above, below = figure.subplots(2, 1, sharex=True)
    given = {tau: math.log(evidence.over_seeds(tau, "val").value) for tau in evidence.series.taus if 0 < tau < math.inf}
    least = min(math.log(evidence.over_seeds(tau, "val").value) for tau in evidence.series.taus)
    above.plot([*given], [nll - least for nll in given.values()], color=BLACK, linewidth=2.6, marker="o", markersize=5)
    for limit, words in ((0.0, "τ = 0"), (math.inf, "τ = ∞")):
        if limit in evidence.series.taus:
            y = math.log(evidence.over_seeds(limit, "val").value) - least
            above.axhline(y, color=BLUE if limit == 0 else VERMILION, linewidth=1.2, label=words)
    for i, run in enumerate(evidence.series.learned):
        above.axvline(run.tau, color=BLACK, linewidth=1.2, linestyle="--", label=None if i else "τ learned")
    if (chosen := evidence.best_middle_tau) in given:
        above.plot(chosen, given[chosen] - least, "o", label="by validation", **RING)
    above.set(ylabel="validation NLL,\nnats a token above the best", title="Support for each τ")
    if above.get_legend_handles_labels()[0]:
        put_legend_above(above, columns=4)
    below.plot(curve["tau"], curve["evidence"], color=BLACK, linewidth=1.8)
    low, high = (min(max(tau, curve["tau"].min()), curve["tau"].max()) for tau in inferred)
    below.axvspan(low, high, color=LIGHT, linewidth=0)
    shown = min(low, *given) / 10, max(high, *given) * 10
    below.set_xlim(shown)
    least_seen = curve[curve["tau"].between(*shown)]["evidence"].min()
    below.set_ylim(1.05 * least_seen, -0.05 * least_seen)
    below.set(xscale="log", xlabel="precision τ", ylabel="evidence,\nnats from its highest")
    below.yaxis.set_major_formatter("{x:,.0f}")
    return figure
