"""What all figures of a report share: style, axes, names next to points.

In all of them black is the whole corpus and grey a task; blue compares with separate models, vermilion with one model
(Okabe and Ito's colours, which people with colour blindness can tell apart; markers differ, too). Draw inside
`drawing_style`.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from bora.lib.names import one_line

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

BLACK, GREY, LIGHT = "#1a1a1a", "#8c8c8c", "#d4d4d4"
BLUE, VERMILION = "#0072B2", "#D55E00"
GROUPS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7A5195", "#4D4D4D"]
BY_TAU = LinearSegmentedColormap.from_list("tau", [BLUE, "#7A5195", VERMILION])  # from separate models to one
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
MAX_HOVER_NAMES = 500  # tasks named under the pointer; more would slow down the page
MAX_POINT_NAMES = 30  # names written next to points
# Where to place a point's name: offsets in typographic points, best first.
ASIDE = [(4, 0), (-4, 0), (0, 4), (0, -4), (3, 3), (3, -3), (-3, 3), (-3, -3)]
HORIZONTAL = {-1: "right", 0: "center", 1: "left"}
VERTICAL = {-1: "top", 0: "center", 1: "bottom"}


@contextmanager
def drawing_style(fonts: Sequence[str]) -> Iterator[None]:
    """Apply this style inside the context, with the fonts from `bora.report.fonts.find_fonts`."""
    with mpl.rc_context({**mpl.rcParamsDefault, **STYLE, "font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the report says so once
        yield


def color_by_tau(tau: float, taus: Iterable[float]) -> tuple[float, float, float, float]:
    """Return the colour of τ among all τ of a series, from separate models to one model."""
    order = sorted({0.0, *taus, math.inf})
    return BY_TAU(order.index(tau) / (len(order) - 1))


def canvas(height: float = HEIGHT) -> tuple[Figure, Axes]:
    """Make a figure of one panel."""
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.add_subplot()


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


def set_task_axis(ax: Axes, tasks: pd.Index) -> None:
    """Put tasks along y, one row each: with names if there are not too many, else with their number."""
    n = len(tasks)
    if n <= MAX_AXIS_NAMES:
        ax.set_yticks(np.arange(n), [shorten(str(name)) for name in tasks], fontsize=8.5)
    else:
        ax.set_yticks([])
        ax.set_ylabel(f"{n} tasks")
    ax.set_ylim(-0.7, n - 0.3)
    ax.grid(axis="y", visible=False)


def set_size_axis(ax: Axes, n: pd.Series) -> None:
    """Put training documents along x; logarithmic if they span more than a decade."""
    ax.set_xlabel("training documents")
    if n.min() > 0 and n.max() / n.min() > 10:
        set_logarithmic(ax, "x")
    else:
        if n.min() == n.max():
            ax.set_xlim(n.min() - 2, n.min() + 2)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def put_legend_above(ax: Axes, columns: int = 2, right: bool = False, **which: Any) -> None:
    """Put the legend between title and axes, where it hides no point: at the right if names on the left need room."""
    side, anchor = ("right", (1.0, 1.0)) if right else ("left", (-0.01, 1.0))
    place: dict[str, Any] = {"loc": f"lower {side}", "bbox_to_anchor": anchor}
    legend = ax.legend(ncols=columns, columnspacing=1.2, borderaxespad=0.1, **place, **which)
    ax.set_title(ax.get_title(loc="left"), pad=10 + 16 * math.ceil(len(legend.get_texts()) / columns))


def hover_names(tasks: Iterable[object]) -> Sequence[str | None]:
    """Return the names that the page shows under the pointer, as matplotlib links; none if there are too many."""
    names = [one_line(str(task)) for task in tasks]
    return names if len(names) <= MAX_HOVER_NAMES else [None]


def shorten(name: str, length: int = 34) -> str:
    """Shorten a name to a length by leaving out its middle, and escape it for matplotlib."""
    name = one_line(str(name))
    name = name if len(name) <= length else f"{name[: length - 10]}…{name[-8:]}"
    return name.replace("$", r"\$")  # otherwise it would be read as mathematics


def write_names(figure: Figure, ax: Axes, points: list[tuple[str, float, float]]) -> None:
    """Write names next to points, the outermost first, if they overlap no point and no other name.

    Each name is written once, even if its task has several points.
    """
    figure.draw_without_rendering()  # fixes the layout, and so the points' places
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
