"""The figures: 1 to 5 as in the paper, 6 the map of tasks; one visual language for all.

Black is the whole corpus, grey a task; blue is against separate models, vermilion against one model
(Okabe and Ito's colours, told apart by all kinds of sight; markers differ too).
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from bora.lib.escaping import one_line
from bora.report.evidence import Evidence, Interval, format_tau, rank_correlation
from bora.report.task_map import TaskMap

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

BLACK, GREY, LIGHT = "#1a1a1a", "#8c8c8c", "#d4d4d4"
BLUE, VERMILION = "#0072B2", "#D55E00"
GROUPS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7A5195", "#4D4D4D"]
MARKERS = "osD^vPX*"
MANY = 60  # tasks: from here on names do not fit on an axis

STYLE: "dict[RcKeyType, Any]" = {
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    "savefig.bbox": "tight",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#4d4d4d",
    "axes.linewidth": 0.8,
    "xtick.color": "#4d4d4d",
    "ytick.color": "#4d4d4d",
    "axes.labelcolor": BLACK,
    "text.color": BLACK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "bora",
    "pdf.fonttype": 42,
}
WIDTH, HEIGHT = 6.8, 4.2  # inches


def styled(draw: Callable[..., Figure | None]) -> Callable[..., Figure | None]:
    """Draw in the common style, whatever the caller's own."""

    def drawn(*args, **kwargs) -> Figure | None:
        with mpl.rc_context({**mpl.rcParamsDefault, **STYLE}):
            figure = draw(*args, **kwargs)
            if figure is not None:
                figure.draw_without_rendering()
            return figure

    drawn.__doc__ = draw.__doc__
    return drawn


def canvas(height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.add_subplot()


@styled
def sizes(evidence: Evidence) -> Figure:
    """Figure 1: documents per task; training dark, validation and test light behind it."""
    tasks = evidence.tasks().sort_values("n_train", kind="stable")
    n = len(tasks)
    held_out = tasks["n_val"] + tasks["n_test"]
    if n <= MANY:
        figure, ax = canvas(max(2.2, 1.0 + 0.2 * n))
        place = np.arange(n)
        ax.barh(place, tasks["n_train"], color=BLUE, height=0.72, label="training")
        ax.barh(place, held_out, left=tasks["n_train"], color=LIGHT, height=0.72, label="validation and test")
        ax.set_yticks(place, [shorten(name) for name in tasks.index], fontsize=8.5)
        ax.set_ylim(-0.6, n - 0.4)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("documents")
    else:
        figure, ax = canvas()
        place = np.arange(1, n + 1)
        largest_first = tasks["n_train"].to_numpy()[::-1]
        total = (tasks["n_train"] + held_out).to_numpy()[::-1]
        ax.fill_between(place, total, color=LIGHT, step="mid", label="validation and test", linewidth=0)
        ax.fill_between(place, largest_first, color=BLUE, step="mid", label="training", linewidth=0)
        ax.set_xlim(0.5, n + 0.5)
        ax.set_ylim(0)
        ax.set_xlabel("task, by size")
        ax.set_ylabel("documents")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    ax.set_title("Documents per task")
    legend_outside(ax)
    return figure


@styled
def perplexity_by_tau(evidence: Evidence) -> Figure:
    """Figure 2: τ against perplexity; thick line overall, thin grey line a task; 0 and ∞ placed."""
    taus = evidence.series.taus
    figure, ax = canvas()
    positive = [t for t in taus if 0 < t < math.inf]
    smallest = min(positive, default=1.0)
    beyond = max(positive, default=1.0) * 10
    x = np.array([beyond if math.isinf(t) else t for t in taus])
    by_task = pd.DataFrame({t: evidence.by_task(t).mean(axis=1) for t in taus})
    thin = 0.9 if len(by_task) <= MANY else 0.5
    for row in by_task.to_numpy():
        ax.plot(x, row, color=GREY, linewidth=thin, alpha=0.55 if len(by_task) <= MANY else 0.3)
    ax.plot([], [], color=GREY, linewidth=thin, label="a task")
    overall = [evidence.over_seeds(t) for t in taus]
    y = np.array([o.value for o in overall])
    ax.plot(x, y, color=BLACK, linewidth=2.6, marker="o", markersize=5, label="all tasks")
    low, high = (np.array([getattr(o, end) for o in overall]) for end in ("low", "high"))
    if np.isfinite(low).any():
        ax.errorbar(
            x,
            y,
            yerr=np.vstack([y - low, high - y]),
            fmt="none",
            ecolor=BLACK,
            elinewidth=1.2,
            capsize=3,
            label="95 %, over seeds",
        )
    best = evidence.best_tau
    place = x[taus.index(best)]
    ax.plot(
        place,
        y[taus.index(best)],
        marker="o",
        markersize=12,
        markerfacecolor="none",
        markeredgecolor=VERMILION,
        markeredgewidth=1.8,
        linestyle="none",
        label=f"τ = {format_tau(best)}, by validation",
    )
    ax.set_xscale("symlog", linthresh=smallest, linscale=0.6)
    ax.set_xlim(-0.12 * smallest, x.max() * 1.6 if x.max() > smallest else smallest * 1.6)
    ax.xaxis.set_major_locator(FixedLocator(x.tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(x, _thinned([format_tau(t) for t in taus], x, smallest))
    logarithmic(ax)
    ax.set_xlabel("precision τ")
    ax.set_ylabel(evidence.measure.split(" as ")[0])
    ax.set_title("Perplexity by τ")
    legend_outside(ax, columns=4)
    return figure


def _thinned(labels: list[str], x: np.ndarray, linthresh: float) -> list[str]:
    """Leave out a label that would run into the one before (searches put τ anywhere)."""
    place = np.where(x < linthresh, x / linthresh * 0.6, 0.6 + np.log10(np.maximum(x, linthresh) / linthresh))
    room, last, kept = max(place.max(), 1) / 14, -math.inf, []
    for label, at in zip(labels, place, strict=True):
        wide = room * max(1, len(label) / 4)
        kept.append(label if at - last >= wide or label in ("0", "∞") else "")
        last = at if kept[-1] else last
    return kept


def logarithmic(ax: Axes) -> None:
    """A logarithmic y axis with plain numbers, as many as are needed."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ticks = MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    if high / low > 8:
        ticks = [m * 10.0**e for e in range(-3, 12) for m in (1, 2, 5)]
    ticks = [t for t in ticks if low <= t <= high]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


@styled
def improvement(evidence: Evidence) -> Figure | None:
    """Figure 3: training size against the relative improvement over τ = 0 and over one model."""
    tau = evidence.best_middle_tau
    if tau is None:
        return None
    figure, ax = canvas()
    limits = [(0.0, "separate models (τ = 0)", BLUE, "o"), (math.inf, "one model (τ = ∞)", VERMILION, "D")]
    points: list[tuple[str, float, float]] = []
    n = evidence.tasks()["n_train"]
    for other, words, color, marker in limits:
        difference = evidence.difference(tau, other)
        if difference is None:
            continue
        y = difference.improvement
        rho = rank_correlation(n.to_numpy(), y.to_numpy())
        label = f"over {words}" + ("" if math.isnan(rho.value) else f", ρ = {Interval(rho.value):+.2f}")
        ax.scatter(n, y, s=30, color=color, marker=marker, alpha=0.85, linewidth=0, label=label)
        points += [(str(t), n[t], y[t]) for t in y.index]
    if not points:
        return None
    ax.axhline(0, color=BLACK, linewidth=0.9)
    size_axis(ax, n)
    ax.set_ylabel("perplexity lower by, %")
    ax.set_title(f"What τ = {format_tau(tau)} gains for each task")
    legend_outside(ax)
    label_points(figure, ax, points)
    return figure


@styled
def distances(evidence: Evidence) -> Figure | None:
    """Figure 4: training size against ‖θ_d − Θ‖."""
    tau = evidence.best_middle_tau
    if tau is None:
        return None
    distance, n = evidence.distances(tau), evidence.tasks()["n_train"]
    return _scatter(n, distance, "‖θ_d − Θ‖₂", f"Distance to the hierarchical mean at τ = {format_tau(tau)}")


@styled
def size_and_perplexity(evidence: Evidence) -> Figure:
    """Figure 5: training size against perplexity at the τ that validation chooses."""
    tau = evidence.best_tau
    y, n = evidence.by_task(tau).mean(axis=1), evidence.tasks()["n_train"]
    what = evidence.measure.split(" as ")[0]
    return _scatter(n, y, what, f"Training size and perplexity at τ = {format_tau(tau)}")


def _scatter(n: pd.Series, y: pd.Series, label: str, title: str) -> Figure:
    figure, ax = canvas()
    ax.scatter(n, y, s=30, color=BLUE, alpha=0.85, linewidth=0)
    size_axis(ax, n)
    ax.set_ylabel(label)
    rho = rank_correlation(n.to_numpy(), y.to_numpy())
    note = "" if math.isnan(rho.value) else f"   Spearman's ρ {rho:+.2f}"
    ax.set_title(title + note)
    label_points(figure, ax, [(str(t), n[t], y[t]) for t in y.index])
    return figure


@styled
def task_map(projection: TaskMap) -> Figure:
    """Figure 6: the tasks in the plane of the first two principal components of θ_d − Θ."""
    figure, ax = canvas(4.6)
    x, y = projection.coordinates.T
    if projection.groups is None:
        ax.scatter(x, y, s=34, color=BLUE, linewidth=0)
    else:
        counts = projection.groups.value_counts()
        shown = counts.index[: len(GROUPS) if len(counts) <= len(GROUPS) else len(GROUPS) - 1]
        rest = ~projection.groups.isin(shown).to_numpy()
        for i, group in enumerate(shown):
            mine = (projection.groups == group).to_numpy()
            ax.scatter(
                x[mine],
                y[mine],
                s=36,
                color=GROUPS[i],
                marker=MARKERS[i],
                linewidth=0,
                # Matplotlib leaves out what begins with an underscore.
                label=f" {shorten(group, 28)}" if group.startswith("_") else shorten(group, 28),
            )
        if rest.any():
            ax.scatter(x[rest], y[rest], s=26, color=LIGHT, linewidth=0, label=f"{len(counts) - len(shown)} others")
        ax.legend(
            title=shorten(str(projection.column)), loc="center left", bbox_to_anchor=(1.01, 0.5), alignment="left"
        )
    for axis, i in ((ax.xaxis, 0), (ax.yaxis, 1)):
        axis.set_label_text(f"component {i + 1} ({projection.shares[i]:.0%} of the variance)")
    ax.set_title(f"Map of the tasks at τ = {format_tau(projection.tau)}")
    ax.axhline(0, color=LIGHT, linewidth=0.8, zorder=0)
    ax.axvline(0, color=LIGHT, linewidth=0.8, zorder=0)
    label_points(figure, ax, list(zip(map(str, projection.tasks), x, y, strict=True)))
    return figure


def size_axis(ax: Axes, n: pd.Series) -> None:
    """Training documents along x; logarithmic where they spread over more than a decade."""
    ax.set_xlabel("training documents")
    if n.max() / max(1, n.min()) > 10:
        ax.set_xscale("log")
        ticks = [m * 10.0**e for e in range(7) for m in (1, 2, 5)]
        ax.xaxis.set_major_locator(FixedLocator([t for t in ticks if n.min() * 0.8 <= t <= n.max() * 1.25]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    else:
        if n.min() == n.max():
            ax.set_xlim(n.min() - 2, n.min() + 2)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def legend_outside(ax: Axes, columns: int = 2) -> None:
    """Above the axes, so that it hides no point."""
    ax.set_title(ax.get_title(loc="left"), pad=26)
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=columns,
        handletextpad=0.4,
        columnspacing=1.2,
        borderaxespad=0.1,
    )


def shorten(name: str, length: int = 34) -> str:
    """A name that fits; the middle is left out."""
    name = one_line(str(name))
    name = name if len(name) <= length else f"{name[: length - 10]}…{name[-8:]}"
    return name.replace("$", r"\$")  # or it would be read as mathematics


def label_points(figure: Figure, ax: Axes, points: list[tuple[str, float, float]], most: int = 30) -> None:
    """Write names beside points, the outermost first, where they run into no point and no other name.

    Each name stands once, also if its task has several points.
    """
    figure.draw_without_rendering()  # fixes the layout, and with it the points' places
    places = ax.transData.transform([(x, y) for _, x, y in points])
    spread = np.maximum(places.std(axis=0), 1e-9)
    outermost = np.argsort(-np.abs((places - np.median(places, axis=0)) / spread).max(axis=1), kind="stable")
    frame = ax.get_window_extent()
    taken = [(px - 4, py - 4, px + 4, py + 4) for px, py in places]
    written: set[str] = set()
    limit = most if len(points) <= 2 * MANY else 14
    for i in outermost:
        name = points[i][0]
        if len(written) >= limit or name in written:
            continue
        text = ax.annotate(shorten(name, 24), (0, 0), fontsize=7.5, color="#4d4d4d", annotation_clip=False)
        box = text.get_window_extent()
        text.remove()
        for dx, dy, ha, va in (
            (6, 0, "left", "center"),
            (-6, 0, "right", "center"),
            (0, 6, "center", "bottom"),
            (0, -6, "center", "top"),
            (5, 5, "left", "bottom"),
            (5, -5, "left", "top"),
            (-5, 5, "right", "bottom"),
            (-5, -5, "right", "top"),
        ):
            left = places[i][0] + dx - {"left": 0, "right": box.width, "center": box.width / 2}[ha]
            bottom = places[i][1] + dy - {"bottom": 0, "top": box.height, "center": box.height / 2}[va]
            here = (left, bottom, left + box.width, bottom + box.height)
            inside = here[0] >= frame.x0 and here[2] <= frame.x1 and here[1] >= frame.y0 and here[3] <= frame.y1
            if inside and not any(_overlap(here, other) for other in taken):
                scale = 72 / figure.dpi  # pixels to points
                ax.annotate(
                    shorten(name, 24),
                    points[i][1:],
                    xytext=(dx * scale, dy * scale),
                    textcoords="offset points",
                    ha=ha,
                    va=va,
                    fontsize=7.5,
                    color="#4d4d4d",
                )
                taken.append(here)
                written.add(name)
                break


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
