"""Tables on the terminal: of a run's tasks, of a sweep, and of runs."""

import math
from collections.abc import Iterable

import pandas as pd
from rich.table import Table

from bora.lib.console import plain_console


def make_table(title: str, columns: Iterable[str], *left: str, caption: str | None = None) -> Table:
    """Make a table for the terminal, aligned right except for the columns `left`; no cell is cut."""
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    return table


def print_tasks(per_task: pd.DataFrame, summary: dict) -> None:
    """Print a row for each task, and the whole corpus below.

    The gain is the change of test perplexity from the frozen backbone's.
    """
    learned = f", learned (c = {summary['learned']['c']:.2f})" if "learned" in summary else ""
    columns = ["task", "train\ndocs", "validation\nppl", "test\nppl", "frozen\nppl", "gain", "‖θ−Θ‖"]
    table = make_table(f"τ = {float(summary['tau']):.4g}{learned}", columns, "task")
    for t in per_task.to_dict("records"):
        perplexities = _perplexities(t["val_perplexity"], t["test_perplexity"], t["base_test_perplexity"])
        table.add_row(t["task"], f"{t['n_train']:,}", *perplexities, f"{t['distance']:.3f}")
    table.add_section()
    # In the file an infinite perplexity is the string "inf".
    ppl = {key: float(value) for key, value in summary.items() if "perplexity" in key}
    overall = _perplexities(ppl["val_perplexity"], ppl["test_perplexity"], ppl["base_test_perplexity"])
    table.add_row("all (by token)", f"{per_task.n_train.sum():,}", *overall, "")
    frozen = per_task["base_test_perplexity"].mean()
    mean = _perplexities(ppl["val_perplexity_macro"], ppl["test_perplexity_macro"], frozen)
    table.add_row("mean over tasks", "", *mean, "")
    plain_console().print(table)


def _perplexities(validation: float, test: float, frozen: float) -> list[str]:
    """Format three perplexities, and the gain."""
    gain = f"{100 * (test / frozen - 1):+.1f} %".replace("-", "−")
    return [f"{value:.2f}" for value in (validation, test, frozen)] + [gain]


def print_sweep(runs: pd.DataFrame, by: list[str]) -> None:
    """Print a row for each setting, averaged over its seeds, and mark the one that validation chooses.

    Only perplexities of the same tokens are compared. If there are given τ, a learned one is not chosen, since its c was
    fitted to validation.

    Args:
        runs: one row for each run: the columns `by`, tokens_of, seed, val_perplexity, test_perplexity, best_epoch.
        by: columns that distinguish the settings; tau, the first, sorts them.
    """
    caption = "* chosen by validation"
    if runs["seed"].nunique() > 1:
        caption += "; ± is the standard deviation over seeds"
    columns = ["τ", *by[1:], "seeds", "validation ppl", "test ppl", "best epoch"]
    table = make_table("τ → perplexity", columns, caption=caption)
    groups = [group for _, group in runs.groupby(by, dropna=False)]
    chosen: dict[str, pd.DataFrame] = {}  # by tokens_of
    for group in sorted(groups, key=lambda group: (group["tau"].isna().all(), group["val_perplexity"].mean())):
        chosen.setdefault(group["tokens_of"].iloc[0], group)
    for group in groups:
        epochs = sorted(set(group["best_epoch"]))
        tau, *others = group[by].iloc[0]
        mark = " *" if group is chosen[group["tokens_of"].iloc[0]] else "  "
        table.add_row(
            _tau(tau),
            *others,
            f"{group['seed'].nunique()}",
            _mean(group["val_perplexity"]) + mark,
            _mean(group["test_perplexity"]),
            " to ".join(f"{epoch}" for epoch in dict.fromkeys((epochs[0], epochs[-1]))),
        )
    plain_console().print(table)


def _tau(tau: float) -> str:
    return "learn" if math.isnan(tau) else f"{tau:g}"


def _mean(values: pd.Series) -> str:
    spread = f" ± {values.std():.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{spread}"


def print_runs(runs: pd.DataFrame, by: list[str]) -> None:
    """Print a row for each finished run.

    Args:
        runs, by: see `print_sweep`; and run, its folder.
    """
    table = make_table("runs", ["τ", *by[1:], "seed", "validation ppl", "test ppl", "best epoch", "run"], "run")
    for r in runs.sort_values([*by, "seed"]).to_dict("records"):
        perplexities = (f"{r[key]:.2f}" for key in ("val_perplexity", "test_perplexity"))
        others = (r[key] for key in by[1:])
        table.add_row(_tau(r["tau"]), *others, f"{r['seed']}", *perplexities, f"{r['best_epoch']}", r["run"])
    plain_console().print(table)
