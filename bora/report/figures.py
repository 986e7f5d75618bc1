"""The figures: 1 to 5 as in the paper, 6 to 8 of the tasks beside each other, 9 and 12 of training, 10 of who wrote a
text, 11 of τ for inference.

One visual language for all: black is the whole corpus, grey a task; blue is against separate models, vermilion against
one model (Okabe and Ito's colours, told apart by all kinds of sight; markers differ too). Draw within
`mpl.rc_context(STYLE)`.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from bora.lib.names import format_tau, one_line
from bora.report.authors import Guesses, reliability
from bora.report.evidence import Evidence, place_taus, rank_correlation
from bora.report.intervals import Interval
from bora.report.similarity import Similarity
from bora.runs.archive import Run
from bora.train.authorship import N_BINS, calibration_error

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

BLACK, GREY, LIGHT = "#1a1a1a", "#8c8c8c", "#d4d4d4"
BLUE, VERMILION = "#0072B2", "#D55E00"
BY_TAU = LinearSegmentedColormap.from_list("tau", [BLUE, "#7A5195", VERMILION])  # from separate models to one
GROUPS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7A5195", "#4D4D4D"]
DIVERGING = "PuOr"  # the middle is white
Z95 = 1.96
STYLE: "dict[RcKeyType, Any]" = {
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.1,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#4d4d4d",
    "xtick.color": "#4d4d4d",
    "ytick.color": "#4d4d4d",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "bora",
    "pdf.fonttype": 42,
}
WIDTH, HEIGHT = 6.8, 4.2  # inches
MAX_AXIS_NAMES = 60  # tasks whose names fit on an axis
MAX_HOVER_NAMES = 500  # tasks named where the pointer is; more would make the page slow
MAX_LEGEND_TAUS = 9
MAX_POINT_NAMES = 30  # names written beside points
MAX_TICKS = 13
LEARNED = math.nan  # in the place of a τ
MAX_PANELS = 25  # tasks with learning curves of their own
MAX_RATIO = 1.25  # of a task's perplexity to its first, on the axis
# Where a point's name may stand, in points from it, best first.
ASIDE = [(4, 0), (-4, 0), (0, 4), (0, -4), (3, 3), (3, -3), (-3, 3), (-3, -3)]
HORIZONTAL = {-1: "right", 0: "center", 1: "left"}
VERTICAL = {-1: "top", 0: "center", 1: "bottom"}


def canvas(height: float = HEIGHT) -> tuple[Figure, Axes]:
    """Make a figure of one panel."""
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.add_subplot()


def sizes(evidence: Evidence) -> Figure:
    """Draw figure 1: documents per task; training dark, validation and test light beside it."""
    tasks = evidence.tasks().sort_values("n_train", kind="stable")
    n, train = len(tasks), tasks["n_train"].to_numpy()
    total = train + (tasks["n_val"] + tasks["n_test"]).to_numpy()
    if n <= MAX_AXIS_NAMES:
        figure, ax = canvas(max(2.2, 1.0 + 0.2 * n))
        ax.barh(np.arange(n), train, color=BLUE, height=0.72, label="training")
        ax.barh(np.arange(n), total - train, left=train, color=LIGHT, height=0.72, label="validation and test")
        ax.set_yticks(np.arange(n), [shorten(name) for name in tasks.index], fontsize=8.5)
        ax.set_ylim(-0.6, n - 0.4)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("documents")
    else:
        figure, ax = canvas()
        place = np.arange(n, 0, -1)
        ax.fill_between(place, total, color=LIGHT, step="mid", label="validation and test", linewidth=0)
        ax.fill_between(place, train, color=BLUE, step="mid", label="training", linewidth=0)
        ax.set_xlim(0.5, n + 0.5)
        ax.set_ylim(0)
        ax.set_xlabel("task, by size")
        ax.set_ylabel("documents")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    ax.set_title("Documents per task")
    put_legend_above(ax)
    return figure


def perplexity_by_tau(evidence: Evidence) -> Figure:
    """Draw figure 2: perplexity by τ; a thick line overall, a thin grey line a task."""
    taus, best = evidence.series.taus, evidence.best_tau
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
    ax.plot(x[at], y[at], "o", ms=12, mfc="none", mec=VERMILION, mew=1.8, label=ring)
    if learned := evidence.series.learned_beside:
        mean = np.mean([run.summary["test_perplexity"] for run in learned])
        ax.axhline(mean, color=BLUE, linewidth=1.4, linestyle="--", label="τ learned")
    # Searches put τ anywhere: leave out ticks that would run into others, but never the ends'.
    ticks: list[int] = []
    for i in (0, len(x) - 1, *range(1, len(x) - 1)):
        if all(abs(x[i] - x[j]) >= np.ptp(x) / MAX_TICKS for j in ticks):
            ticks.append(i)
    ax.set_xticks(x[ticks], [format_tau(taus[i]) for i in ticks])
    set_logarithmic(ax, "y")
    ax.set_xlabel("precision τ")
    ax.set_ylabel(evidence.measure.split(" as ")[0])
    ax.set_title("Perplexity by τ")
    put_legend_above(ax, columns=4)
    return figure


def set_logarithmic(ax: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with plain numbers."""
    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    low, high = axis.get_view_interval()
    ticks = [m * 10.0**e for e in range(-3, 12) for m in (1, 2, 5)]
    if high / low <= 8:
        ticks = list(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
    ticks = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(ticks, [f"{tick:,.10g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())


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
        # Not among many tasks, nor of one size: the bars would be one.
        if len(y) <= MAX_AXIS_NAMES and n.nunique() > 1 and (ends := difference.improvement_ends) is not None:
            bars.append((ends, color))
        points += [(str(task), n[task], y[task]) for task in y.index]
    if tau is None or not points:
        return None
    ax.axhline(0, color=BLACK, linewidth=0.9)
    set_size_axis(ax, n)
    ax.set_ylabel("perplexity lower by, %")
    ax.set_title(f"What τ = {format_tau(tau)} gains for each task")
    put_legend_above(ax)
    if bars:
        _draw_bars(ax, n, bars)
    write_names(figure, ax, points)
    return figure


def _draw_bars(ax: Axes, n: pd.Series, bars: list[tuple[pd.DataFrame, str]]) -> None:
    """Draw intervals thin and light; few seeds' are long, so they take at most as much of the axis as the points."""
    low, high = ax.get_ylim()
    for ends, color in bars:
        ax.vlines(n[ends.index], ends["low"], ends["high"], color=color, linewidth=0.8, alpha=0.4, zorder=1)
    below, above, room = *ax.get_ylim(), (high - low) / 2
    ax.set_ylim(max(below, low - room), min(above, high + room))
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
    ax.set_ylabel(label)
    ax.set_title(title)
    rho = rank_correlation(n, y)
    if not math.isnan(rho.value):
        ax.set_title(f"Spearman's ρ {rho:+.2f}", loc="right", fontsize=9)
    write_names(figure, ax, [(str(task), n[task], y[task]) for task in y.index])
    return figure


def similarity(found: Similarity) -> Figure:
    """Draw figure 6: the cosine of each two tasks' deviations, like tasks beside each other."""
    n = len(found.tasks)
    named = n <= MAX_AXIS_NAMES
    figure, ax = canvas(max(3.6, min(8.0, 1.4 + 0.17 * n)) if named else 5.6)
    cosines = found.cosines[np.ix_(found.order, found.order)].copy()
    np.fill_diagonal(cosines, np.nan)  # each task's with itself is 1, and would be all that is seen
    chance = -1 / (n - 1)  # of deviations that have nothing in common, less their mean
    bound = float(np.nanmax(np.abs(cosines - chance))) or 1.0
    image = ax.imshow(cosines, cmap=DIVERGING, vmin=chance - bound, vmax=chance + bound, interpolation="nearest")
    figure.colorbar(image, ax=ax, shrink=0.8, label="cosine of the deviations from Θ")
    names = [shorten(found.tasks[i], 28) for i in found.order]
    ax.set_yticks(np.arange(n) if named else [], names if named else [], fontsize=7.5)
    ax.set_xticks([])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.set_title(f"Which tasks deviate alike at τ = {format_tau(found.tau)}")
    if found.groups is not None:
        _draw_groups(ax, found.groups.iloc[found.order], str(found.column))
    return figure


def _draw_groups(ax: Axes, groups: pd.Series, column: str) -> None:
    """Draw a strip of colours along the bottom, each task's group."""
    counts = groups.value_counts()
    shown = counts.index[: len(GROUPS) if len(counts) <= len(GROUPS) else len(GROUPS) - 1]
    colors = dict(zip(shown, GROUPS, strict=False))
    mark: dict[str, Any] = {
        "marker": "s",
        "ms": max(2.0, min(7.0, 220 / len(groups))),
        "linewidth": 0,
        "clip_on": False,
    }
    for place, group in enumerate(groups):
        ax.plot(place, -0.02, color=colors.get(group, LIGHT), transform=ax.get_xaxis_transform(), **mark)
    for group, color in colors.items():
        # Matplotlib leaves a label out that begins with an underscore.
        ax.plot([], [], "s", color=color, label=" " * group.startswith("_") + shorten(group, 28))
    if len(counts) > len(shown):
        ax.plot([], [], "s", color=LIGHT, label=f"{len(counts) - len(shown)} others")
    ax.legend(title=shorten(column), loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=4)


def effects(evidence: Evidence) -> Figure | None:
    """Draw figure 7: how much better each task's own θ is than Θ on its test documents, with 95 % intervals."""
    tau = evidence.best_middle_tau
    if tau is None or any("effect" not in run.per_task for run in evidence.series.at(tau)):
        return None
    effect = evidence.by_task(tau, "effect").mean(axis=1).sort_values(kind="stable")
    half = Z95 * evidence.by_task(tau, "effect_error").mean(axis=1)[effect.index].fillna(0.0)
    n = len(effect)
    named = n <= MAX_AXIS_NAMES
    figure, ax = canvas(max(2.4, 1.0 + 0.2 * n) if named else 5.6)
    place = np.arange(n)
    ax.axvline(0, color=BLACK, linewidth=0.9)
    width, size, names = 1.6 if named else 0.6, 20 if named else 3, hover_names(effect.index)
    ax.hlines(place, effect - half, effect + half, color=BLUE, linewidth=width, alpha=0.6, urls=names)
    ax.scatter(effect, place, s=size, color=BLUE, linewidth=0, zorder=2, urls=names)
    set_task_axis(ax, effect.index)
    ax.set_xlabel("nats a token better than under Θ")
    ax.set_title(f"What each task's own θ is worth at τ = {format_tau(tau)}")
    return figure


def pooling(evidence: Evidence) -> Figure | None:
    """Draw figure 8: each task's perplexity alone, between, and under one model."""
    between, taus = evidence.best_middle_tau, evidence.series.taus
    if between is None or 0.0 not in taus or math.inf not in taus:
        return None
    means, n_train = evidence.task_means(), evidence.tasks()["n_train"]
    order = means[between].sort_values(ascending=False, kind="stable").index
    named = len(order) <= MAX_AXIS_NAMES
    figure, ax = canvas(max(2.6, 1.2 + 0.2 * len(order)) if named else 5.6)
    place = np.arange(len(order))
    low, high = means.loc[order, [0.0, between, math.inf]].min(axis=1), means.loc[order].max(axis=1)
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
    ax.set_xlabel(evidence.measure.split(" as ")[0])
    ax.set_title("From separate models to one")
    put_legend_above(ax, columns=3)
    return figure


def learning_curves(evidence: Evidence, curves: list[tuple[Run, pd.DataFrame]]) -> Figure | None:
    """Draw figure 9: each run's validation perplexity while training, by epoch, or by step if epochs have several.

    Args:
        curves: runs with their validations, see RunDirectory.validations.
    """
    curves = [(run, table) for run, table in curves if len(table)]
    if not curves:
        return None
    by_step = curves[0][0].config["trainer.val_check_interval"] is not None
    x, kept = ("step", "best_step") if by_step else ("epoch", "best_epoch")
    y = "val_by_batch/perplexity" if evidence.by_batch else "val/perplexity"
    taus = sorted({run.tau for run, _ in curves if run.learned is None})
    order = sorted({0.0, *taus, math.inf})
    shown = {taus[i] for i in np.linspace(0, len(taus) - 1, min(len(taus), MAX_LEGEND_TAUS)).astype(int)}
    figure, ax = canvas()
    for run, table in sorted(curves, key=lambda each: (each[0].learned is not None, each[0].tau)):
        given = run.learned is None
        color = BY_TAU(order.index(run.tau) / (len(order) - 1)) if given else BLACK
        best = given and run.tau == evidence.best_tau
        curve = table.set_index(x)[y]
        (line,) = ax.plot(curve, color=color, linewidth=1.8 if best else 0.9, linestyle="-" if given else "--")
        if run.tau in shown | {evidence.best_tau} or not given:
            line.set_label(f"τ = {format_tau(run.tau)}" if given else "τ learned")
        at = curve[curve.index == run.summary.get(kept)]
        ax.plot(at, "o", color=color, markersize=5, markerfacecolor="white", markeredgewidth=1.2)
        if not given and run.seed == min(run.seed for run, _ in curves if run.learned is not None):
            changed = table.assign(before=table["val/c"].shift()).query("`val/c`.notna() and `val/c` != before")
            for where, perplexity, c in changed[[x, y, "val/c"]].itertuples(index=False):
                ax.annotate(f"c = {c:g}", (where, perplexity), (0, 7), textcoords="offset points", fontsize=8)
    set_logarithmic(ax, "y")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    ax.set_xlabel(x)
    ax.set_ylabel("validation perplexity")
    ax.set_title("Learning curves")
    ax.margins(x=0.03)
    lines = {str(line.get_label()): line for line in ax.lines if not str(line.get_label()).startswith("_")}
    put_legend_above(ax, columns=5, handles=list(lines.values()))
    return figure


def curves_by_task(evidence: Evidence, by_task: list[tuple[Run, pd.DataFrame]]) -> Figure | None:
    """Draw figure 12: each task's validation perplexity while training, a panel a task, the largest ones.

    Args:
        by_task: runs with their validations by task, see RunDirectory.by_task.
    """
    # Of the lowest seed at both limits and the best τ, and of those that learned it: [validations, D].
    relative: dict[float, pd.DataFrame] = {}
    for run, table in sorted(by_task, key=lambda each: each[0].seed):
        perplexity = table.pivot(index="validation", columns="task", values="val_perplexity")
        shown = run.learned is not None or run.tau in (0, evidence.best_tau, math.inf)
        if shown and len(perplexity) > 1:
            own = (perplexity / perplexity.iloc[0]).replace(math.inf, math.nan)
            relative.setdefault(run.tau if run.learned is None else LEARNED, own)
    if not relative:
        return None
    names = evidence.tasks().sort_values("n_train", ascending=False).index[:MAX_PANELS]
    order = sorted({0.0, *(tau for tau in relative if tau is not LEARNED), math.inf})
    n_columns = min(5, len(names))
    n_rows = math.ceil(len(names) / n_columns)
    figure = Figure(figsize=(WIDTH, 1.1 + 1.15 * n_rows))
    axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    figure.suptitle("Learning curves by task", x=0.02, horizontalalignment="left", fontsize=11)
    for ax, name in zip(axes.flat, names, strict=False):
        for tau in relative:
            curve = relative[tau][str(name)].dropna()
            color = BLACK if tau is LEARNED else BY_TAU(order.index(tau) / (len(order) - 1))
            label = "τ learned" if tau is LEARNED else f"τ = {format_tau(tau)}"
            ax.plot(curve, color=color, linewidth=1, linestyle="--" if tau is LEARNED else "-", label=label)
            ax.plot(curve[curve == curve.min()].head(1), "o", color=color, markersize=3.5, markerfacecolor="white")
        ax.set_title(shorten(str(name), 15), loc="left", fontsize=8)
        ax.tick_params(labelsize=7, labelbottom=name in names[-n_columns:])  # the lowest of its column
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    every = np.concatenate([own.to_numpy().ravel() for own in relative.values()])
    axes[0, 0].set_ylim(0.98 * np.nanmin(every), min(1.02 * np.nanmax(every), MAX_RATIO))
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    figure.supxlabel("validation", fontsize=9)
    figure.supylabel("perplexity ÷ that of validation 1", fontsize=9)
    lines, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper right", ncols=min(6, len(labels)), frameon=False, fontsize=8)
    return figure


def authorship(evidence: Evidence, guesses: Guesses, order: list[str] | None) -> Figure:
    """Draw figure 10: which task each task's documents are taken for, and how sure the model is against how right.

    Args:
        order: of the tasks; None for by size.
    """
    tasks = order or [str(task) for task in evidence.tasks().sort_values("n_train", ascending=False).index]
    n = len(tasks)
    named = n <= MAX_AXIS_NAMES
    height = max(3.0, min(8.0, 0.9 + 0.17 * n)) if named else 5.2
    figure = Figure(figsize=(WIDTH, height + 3.0))
    above, below = figure.subplots(2, height_ratios=[height, 3.0])
    image = above.imshow(guesses.confusion(tasks), cmap="Blues", vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=above, shrink=0.8, label="share of the row")
    above.set_yticks(np.arange(n) if named else [], [shorten(t, 28) for t in tasks] if named else [], fontsize=7.5)
    above.set_xticks([])
    above.set_facecolor(LIGHT)
    above.grid(visible=False)
    above.spines[:].set_visible(False)
    above.set_xlabel("likeliest task, in the same order")
    above.set_ylabel("true task")
    above.set_title("Who wrote it")
    _draw_reliability(below, guesses)
    return figure


def _draw_reliability(ax: Axes, guesses: Guesses) -> None:
    ax.plot([0, 1], [0, 1], color=LIGHT, linewidth=1.4)
    if guesses.sureness_at_1 is not None:
        at_1 = reliability(guesses.sureness_at_1)
        ax.plot(
            at_1["probability"], at_1["accuracy"], "s--", color=GREY, ms=4, linewidth=1.1, label="Bayes' rule alone"
        )
    bins = reliability(guesses.sureness)
    words = f"with temperature {guesses.summary['temperature']:.3g}"
    ax.plot(bins["probability"], bins["accuracy"], "o-", color=BLACK, ms=5, linewidth=1.6, label=words)
    ax.text(-0.01, 1.06, "n =", ha="right", va="bottom", fontsize=7.5, color="#4d4d4d")
    for i, count in zip(bins.index.to_numpy(int), bins["n"], strict=True):
        ax.text((i - 0.5) / N_BINS, 1.06, f"{count:,}", ha="center", va="bottom", fontsize=7.5, color="#4d4d4d")
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xticks(np.linspace(0, 1, N_BINS + 1))
    ax.set_xlabel("probability of the likeliest task")
    ax.set_ylabel("how often it is right")
    ax.set_title(f"How sure and how right: ECE {calibration_error(*guesses.sureness):.3f}", pad=18)
    if guesses.sureness_at_1 is not None:
        ax.legend(loc="lower right")


def profile(evidence: Evidence, curve: pd.DataFrame, inferred: tuple[float, float]) -> Figure:
    """Draw figure 11: τ as validation sees it, and as the evidence does.

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
    for run in evidence.series.learned:
        above.axvline(run.tau, color=BLACK, linewidth=1.2, linestyle="--", label="τ learned" if run.seed == 0 else None)
    above.set_ylabel("validation NLL,\nnats a token above the best")
    above.set_title("What speaks for which τ")
    if above.get_legend_handles_labels()[0]:
        put_legend_above(above, columns=4)
    below.plot(curve["tau"], curve["evidence"], color=BLACK, linewidth=1.8)
    low, high = (min(max(tau, curve["tau"].min()), curve["tau"].max()) for tau in inferred)
    below.axvspan(low, high, color=LIGHT, linewidth=0)
    shown = min(low, *given) / 10, max(high, *given) * 10
    below.set_xlim(shown)
    least_seen = curve[curve["tau"].between(*shown)]["evidence"].min()
    below.set_ylim(1.05 * least_seen, -0.05 * least_seen)
    below.set_xscale("log")
    below.set_xlabel("precision τ")
    below.set_ylabel("evidence,\nnats from its highest")
    below.yaxis.set_major_formatter("{x:,.0f}")
    return figure


def set_task_axis(ax: Axes, tasks: pd.Index) -> None:
    """Put tasks along y, a row each: by name where there are not too many, else by their number."""
    n = len(tasks)
    if n <= MAX_AXIS_NAMES:
        ax.set_yticks(np.arange(n), [shorten(str(name)) for name in tasks], fontsize=8.5)
    else:
        ax.set_yticks([])
        ax.set_ylabel(f"{n} tasks")
    ax.set_ylim(-0.7, n - 0.3)
    ax.grid(axis="y", visible=False)


def set_size_axis(ax: Axes, n: pd.Series) -> None:
    """Put training documents along x; logarithmic where they spread over more than a decade."""
    ax.set_xlabel("training documents")
    if n.min() > 0 and n.max() / n.min() > 10:
        set_logarithmic(ax, "x")
    else:
        if n.min() == n.max():
            ax.set_xlim(n.min() - 2, n.min() + 2)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def put_legend_above(ax: Axes, columns: int = 2, **which: Any) -> None:
    """Put the legend between title and axes, where it hides no point."""
    ax.set_title(ax.get_title(loc="left"), pad=26)
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "borderaxespad": 0.1}
    ax.legend(ncols=columns, columnspacing=1.2, **place, **which)


def hover_names(tasks: Iterable[object]) -> Sequence[str | None]:
    """Give the names that the page shows of points where the pointer is, as matplotlib's links; none of too many."""
    names = [one_line(str(task)) for task in tasks]
    return names if len(names) <= MAX_HOVER_NAMES else [None]


def shorten(name: str, length: int = 34) -> str:
    """Cut a name to a length by leaving out its middle, and escape it for matplotlib."""
    name = one_line(str(name))
    name = name if len(name) <= length else f"{name[: length - 10]}…{name[-8:]}"
    return name.replace("$", r"\$")  # or it would be read as mathematics


def write_names(figure: Figure, ax: Axes, points: list[tuple[str, float, float]]) -> None:
    """Write names beside points, the outermost first, where they run into no point and no other name.

    Each name stands once, also if its task has several points.
    """
    figure.draw_without_rendering()  # fixes the layout, and with it the points' places
    places = ax.transData.transform([(x, y) for _, x, y in points])
    spread = np.maximum(places.std(axis=0), 1e-9)
    outermost = np.argsort(-np.abs((places - np.median(places, axis=0)) / spread).max(axis=1), kind="stable")
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places]
    written: set[str] = set()
    for i in outermost:
        name, *point = points[i]
        if name in written or len(written) == MAX_POINT_NAMES:
            continue
        text = ax.annotate(
            shorten(name, 24), point, ASIDE[0], textcoords="offset points", fontsize=7.5, color="#4d4d4d"
        )
        for dx, dy in ASIDE:
            text.set(position=(dx, dy), ha=HORIZONTAL[np.sign(dx)], va=VERTICAL[np.sign(dy)])
            box = text.get_window_extent()
            if ax.bbox.count_contains(box.corners()) == 4 and not box.count_overlaps(taken):
                taken.append(box)
                written.add(name)
                break
        else:
            text.remove()
