"""What people read on the terminal: the tables of a run and of a sweep, sizes and durations."""

from functools import partial

import pandas as pd
from rich.console import Console
from rich.table import Table

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def plain_console() -> Console:
    """Return standard output as a console that prints a task's name as it is, markup or not."""
    plain = partial(Console, markup=False, emoji=False, highlight=False)
    console = plain()
    # A pipe or a log file has no width, and no name may be cut there.
    return console if console.is_terminal else plain(width=120)


def size(n: float) -> str:
    """Format bytes with three digits: 1.25 GiB."""
    unit = 0
    while n >= 999.5 and unit < len(UNITS) - 1:
        n, unit = n / 1024, unit + 1
    return f"{n:.0f} B" if unit == 0 else f"{n:.{max(0, 2 - len(str(int(n))) + 1)}f} {UNITS[unit]}"


def duration(seconds: float) -> str:
    """Format seconds by their two largest units: 0.3 s, 45 s, 2 min 10 s, 3 h 20 min, 2 d 4 h."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    parts = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    largest = next(i for i, (unit, _) in enumerate(parts) if seconds >= unit)
    words = []
    for unit, name in parts[largest : largest + 2]:
        words.append(f"{int(seconds // unit)} {name}")
        seconds %= unit
    return " ".join(word for word in words if not word.startswith("0 "))


def print_tasks(per_task: pd.DataFrame, summary: dict) -> None:
    """Print a row for each task, and the whole corpus below."""
    table = Table(title=f"τ = {float(summary['tau']):g}", title_justify="left")
    table.add_column("task", overflow="fold")
    for column in ("train docs", "validation ppl", "test ppl", "‖θ−Θ‖"):
        table.add_column(column, justify="right")
    for t in per_task.itertuples():
        row = f"{t.val_perplexity:.2f}", f"{t.test_perplexity:.2f}"
        table.add_row(f"{t.task}", f"{t.n_train}", *row, f"{t.distance:.3f}")
    table.add_section()
    # In the file an infinite perplexity is the string "inf".
    ppl = {key: f"{float(value):.2f}" for key, value in summary.items() if "perplexity" in key}
    table.add_row("all (by token)", f"{per_task.n_train.sum()}", ppl["val_perplexity"], ppl["test_perplexity"], "")
    table.add_row("mean over tasks", "", ppl["val_perplexity_macro"], ppl["test_perplexity_macro"], "")
    table.add_row("frozen backbone", "", "", ppl["base_test_perplexity"], "")
    plain_console().print(table)


def print_sweep(runs: pd.DataFrame, by: list[str]) -> None:
    """Print a row for each setting, averaged over its seeds, and mark the one that validation chooses.

    Args:
        runs: a row a run: the columns `by`, seed, val_perplexity, test_perplexity, best_epoch.
        by: what tells a setting from the others; tau, the first, sorts them.
    """
    caption = "* chosen by validation"
    if runs["seed"].nunique() > 1:
        caption += "; ± is the standard deviation over seeds"
    table = Table(title="τ → perplexity", title_justify="left", caption=caption, caption_justify="left")
    for column in ("τ", *by[1:], "seeds", "validation ppl", "test ppl", "best epoch"):
        table.add_column(column, justify="right", overflow="fold")
    groups = [group for _, group in runs.groupby(by)]
    best = min(groups, key=lambda group: group["val_perplexity"].mean())
    for group in groups:
        epochs = sorted(set(group["best_epoch"]))
        tau, *others = group[by].iloc[0]
        mark = " *" if group is best else "  "
        table.add_row(
            f"{tau:g}",
            *others,
            f"{len(group)}",
            _mean(group["val_perplexity"]) + mark,
            _mean(group["test_perplexity"]),
            " to ".join(f"{epoch}" for epoch in dict.fromkeys((epochs[0], epochs[-1]))),
        )
    plain_console().print(table)


def _mean(values: pd.Series) -> str:
    spread = f" ± {values.std():.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{spread}"


def print_runs(runs: pd.DataFrame, by: list[str]) -> None:
    """Print a row for each finished run.

    Args:
        runs, by: see `print_sweep`; and run, its folder.
    """
    table = Table(title="runs", title_justify="left")
    for column in ("τ", *by[1:], "seed", "validation ppl", "test ppl", "best epoch", "run"):
        table.add_column(column, justify="left" if column == "run" else "right", overflow="fold")
    for r in runs.sort_values([*by, "seed"]).to_dict("records"):
        perplexities = (f"{r[key]:.2f}" for key in ("val_perplexity", "test_perplexity"))
        others = (r[key] for key in by[1:])
        table.add_row(f"{r['tau']:g}", *others, f"{r['seed']}", *perplexities, f"{r['best_epoch']}", r["run"])
    plain_console().print(table)
