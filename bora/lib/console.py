"""What people read on the terminal: lines, bars, the tables of a run and of a sweep, sizes and durations."""

import logging
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TypeVar

import pandas as pd
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from bora.lib.machine import is_first_process

log = logging.getLogger(__name__)
Step = TypeVar("Step")

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
DELAY_SECONDS = 1  # a loop that is shorter has no bar
FIRST_LINE_SECONDS, LINE_SECONDS = 10, 300  # of a loop without a bar: to its first line, and from line to line


def is_watched() -> bool:
    """Return whether to draw bars: standard output is a terminal or notebook that this process alone writes to.

    $TQDM_DISABLE, tqdm's own variable, says not to.
    """
    alone = multiprocessing.parent_process() is None  # not one of a sweep's jobs at a time
    return (
        alone
        and not os.environ.get("TQDM_DISABLE")
        and sys.stdout is not None  # closed, by >&-
        and (sys.stdout.isatty() or type(sys.stdout).__module__.startswith("ipykernel"))
    )


def tell(line: str) -> None:
    """Log a line, or print it where no logging is set up, as in a notebook; neither if the logger `bora` has a level."""
    if log.isEnabledFor(logging.INFO):
        log.info("%s", line)
    elif logging.getLogger("bora").level == logging.NOTSET:
        tqdm.write(line)
        sys.stdout.flush()


def above_bars() -> AbstractContextManager[None]:
    """Within: log lines stand above the bar that is drawn."""
    return logging_redirect_tqdm(tqdm_class=tqdm) if is_watched() else nullcontext()


def open_bar(total: float, what: str, done: int = 0, left: str = "{remaining} left", delay: float = 0) -> tqdm:
    """Draw a bar on standard output that vanishes when it is closed; draw nothing unless `is_watched`.

    Args:
        total, done: steps, all of them and those that are done already.
        what: is being done.
        left: how the time left is worded.
        delay: seconds until the bar is drawn.
    """
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        delay=delay,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {elapsed}, " + left + "{postfix}",
        file=sys.stdout,
        leave=False,
        dynamic_ncols=True,
        smoothing=0,  # the time left is by the mean step, which has its share of validation
        disable=not (is_watched() and is_first_process()),
    )


def close_bar(bar: tqdm) -> None:
    """Close a bar as complete; a notebook leaves an unfinished one on the page, in red."""
    bar.total = bar.n
    bar.close()


def progress(steps: Sequence[Step], what: str) -> Iterator[Step]:
    """Show a loop's progress: a bar, or a line now and then where none can be drawn. Short loops show nothing."""
    due = time.monotonic() + FIRST_LINE_SECONDS
    bar = open_bar(len(steps), what, delay=DELAY_SECONDS)
    try:
        for i, step in enumerate(steps):
            if bar.disable and time.monotonic() > due:
                tell(f"{what}: {i:,} of {len(steps):,}")
                due = time.monotonic() + LINE_SECONDS
            yield step
            bar.update()
    finally:
        close_bar(bar)


def short_count(n: float) -> str:
    """Format a number by three digits: 842, 8.42k, 1.07M."""
    return tqdm.format_sizeof(n)


def short_path(path: Path) -> str:
    """Return a path as absolute or relative to the working folder, whichever is shorter."""
    return min(str(path.resolve()), os.path.relpath(path.resolve()), key=len)


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
    """Print a row for each task, and the whole corpus below.

    The gain is the change of test perplexity from the frozen backbone's.
    """
    learned = f", learned (c = {summary['learned']['c']:.2f})" if "learned" in summary else ""
    table = Table(title=f"τ = {float(summary['tau']):.4g}{learned}", title_justify="left")
    table.add_column("task", overflow="fold")
    for column in ("train\ndocs", "validation\nppl", "test\nppl", "frozen\nppl", "gain", "‖θ−Θ‖"):
        table.add_column(column, justify="right")
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
    groups = [group for _, group in runs.groupby(by, dropna=False)]
    best = min(groups, key=lambda group: group["val_perplexity"].mean())
    for group in groups:
        epochs = sorted(set(group["best_epoch"]))
        tau, *others = group[by].iloc[0]
        mark = " *" if group is best else "  "
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
    table = Table(title="runs", title_justify="left")
    for column in ("τ", *by[1:], "seed", "validation ppl", "test ppl", "best epoch", "run"):
        table.add_column(column, justify="left" if column == "run" else "right", overflow="fold")
    for r in runs.sort_values([*by, "seed"]).to_dict("records"):
        perplexities = (f"{r[key]:.2f}" for key in ("val_perplexity", "test_perplexity"))
        others = (r[key] for key in by[1:])
        table.add_row(_tau(r["tau"]), *others, f"{r['seed']}", *perplexities, f"{r['best_epoch']}", r["run"])
    plain_console().print(table)
