"""Draw the figures on training: 9 for all tasks together, and 12 task by task."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bora.lib.names import format_tau
from bora.report.drawing import BLACK, WIDTH, canvas, color_by_tau, put_legend_above, set_logarithmic, shorten
from bora.report.evidence import Evidence
from bora.runs.archive import RunRecord

MAX_LEGEND_TAUS = 9
LEARNED = math.nan  # stands for a τ
MAX_PANELS = 25  # tasks with their own learning curves
MIN_TOP = 1.25  # the least upper end of the axis of curves by task
SHOWN = 0.9  # share of all points that fit: a run's first may be many times higher


def learning_curves(evidence: Evidence, curves: list[tuple[RunRecord, pd.DataFrame]]) -> Figure | None:
    """Draw figure 9: each run's validation perplexity during training, by epoch, or by step if epochs have several.

    `curves` has each run with its validations, from RunDirectory.validations.
    """
    curves = [(run, table) for run, table in curves if len(table)]
    if not curves:
        return None
    by_step = curves[0][0].config["trainer.val_check_interval"] is not None
    x, kept = ("step", "best_step") if by_step else ("epoch", "best_epoch")
    y = "val_by_batch/perplexity" if evidence.by_batch else "val/perplexity"
    taus = sorted({run.tau for run, _ in curves if run.learned is None})
    shown = {taus[i] for i in np.linspace(0, len(taus) - 1, min(len(taus), MAX_LEGEND_TAUS)).astype(int)}
    figure, ax = canvas()
    for run, table in sorted(curves, key=lambda each: (each[0].learned is not None, each[0].tau)):
        given = run.learned is None
        color = color_by_tau(run.tau, evidence.series.taus) if given else BLACK
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
    ax.set(xlabel=x, ylabel="validation perplexity", title="Learning curves")
    ax.margins(x=0.03)
    lines = {str(line.get_label()): line for line in ax.lines if not str(line.get_label()).startswith("_")}
    put_legend_above(ax, columns=5, handles=list(lines.values()))
    return figure


def curves_by_task(evidence: Evidence, by_task: list[tuple[RunRecord, pd.DataFrame]]) -> Figure | None:
    """Draw figure 12: the largest tasks' validation perplexity during training, one panel for each.

    `by_task` has each run with its validations by task, from RunDirectory.by_task.
    """
    # Perplexities [validations, D] of the lowest seed: at both limits, at the best τ, and with τ learned.
    found: dict[float, pd.DataFrame] = {}
    for run, table in sorted(by_task, key=lambda each: each[0].seed):
        perplexity = table.pivot(index="validation", columns="task", values="val_perplexity")
        shown = run.learned is not None or run.tau in (0, evidence.best_tau, math.inf)
        if shown and len(perplexity) > 1:
            found.setdefault(run.tau if run.learned is None else LEARNED, perplexity.replace(math.inf, math.nan))
    if not found:
        return None
    lowest = pd.concat(found.values()).min()
    relative = {tau: perplexity / lowest for tau, perplexity in found.items()}
    names = evidence.tasks().sort_values("n_train", ascending=False).index[:MAX_PANELS]
    n_columns = min(5, len(names))
    n_rows = math.ceil(len(names) / n_columns)
    figure = Figure(figsize=(WIDTH, max(3.0, 1.1 + 1.15 * n_rows)))
    axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    figure.suptitle("Learning curves by task", x=0.02, horizontalalignment="left", fontsize=11)
    for ax, name in zip(axes.flat, names, strict=False):
        for tau in relative:
            curve = relative[tau][str(name)].dropna()
            color = BLACK if tau is LEARNED else color_by_tau(tau, evidence.series.taus)
            label = "τ learned" if tau is LEARNED else f"τ = {format_tau(tau)}"
            ax.plot(curve, color=color, linewidth=1, linestyle="--" if tau is LEARNED else "-", label=label)
            ax.plot(curve[curve == curve.min()].head(1), "o", color=color, markersize=3.5, markerfacecolor="white")
        ax.set_title(shorten(str(name), 15), loc="left", fontsize=8)
        ax.tick_params(labelsize=7, labelbottom=name in names[-n_columns:])  # the bottom panel of each column
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    every = np.concatenate([own.to_numpy().ravel() for own in relative.values()])
    axes[0, 0].set_ylim(0.98, max(MIN_TOP, float(np.nanquantile(every, SHOWN))))
    set_logarithmic(axes[0, 0], "y")
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    figure.supxlabel("validation", fontsize=9)
    figure.supylabel("perplexity ÷ the task's lowest", fontsize=9)
    lines, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper right", ncols=min(6, len(labels)), frameon=False, fontsize=8)
    return figure
