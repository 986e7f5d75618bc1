"""Write for people on the terminal: lines, bars, sizes and durations."""

import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from bora.lib.machine import is_first_process

log = logging.getLogger(__name__)
Step = TypeVar("Step")

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
DELAY_SECONDS = 1  # shorter loops have no bar
FIRST_LINE_SECONDS, LINE_SECONDS = 10, 300  # for loops without a bar: until the first line, and between lines


def is_watched() -> bool:
    """Return whether to draw bars: standard output is a terminal or notebook that only this process writes to.

    tqdm's own variable, $TQDM_DISABLE, turns them off.
    """
    alone = multiprocessing.parent_process() is None  # not one of several parallel jobs of a sweep
    return (
        alone
        and not os.environ.get("TQDM_DISABLE")
        and sys.stdout is not None  # closed, by >&-
        and (getattr(sys.stdout, "isatty", bool)() or type(sys.stdout).__module__.startswith("ipykernel"))
    )


def tell(line: str) -> None:
    """Log a line, or print it if logging is not set up, as in a notebook; neither if the logger `bora` has a level."""
    if log.isEnabledFor(logging.INFO):
        log.info("%s", line)
    elif logging.getLogger("bora").level == logging.NOTSET:
        tqdm.write(line)
        sys.stdout.flush()


def above_bars() -> AbstractContextManager[None]:
    """Return a context in which log lines are printed above the bar."""
    return logging_redirect_tqdm(tqdm_class=tqdm) if is_watched() else nullcontext()


def open_bar(total: float, what: str, done: int = 0, left: str = "{remaining} left", delay: float = 0) -> tqdm:
    """Draw a bar on standard output that vanishes when it is closed; draw nothing unless `is_watched`.

    Args:
        total, done: number of steps, in all and already done.
        left: wording of the time left.
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
        smoothing=0,  # estimate the time left from the mean step, which includes its share of validation
        disable=not (is_watched() and is_first_process()),
    )


def close_bar(bar: tqdm) -> None:
    """Close a bar as complete; a notebook leaves an unfinished one on the page, in red."""
    bar.total = bar.n
    bar.close()


def progress(steps: Sequence[Step], what: str) -> Iterator[Step]:
    """Show a loop's progress: a bar, or a line now and then if none can be drawn. Short loops show nothing."""
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
    """Format a number with three digits: 842, 8.42k, 1.07M."""
    return tqdm.format_sizeof(n)


def short_path(path: Path) -> str:
    """Return a path as absolute or relative to the working folder, whichever is shorter."""
    return min(str(path.resolve()), os.path.relpath(path.resolve()), key=len)


def plain_console() -> Console:
    """Return a console on standard output that prints task names literally, without reading markup in them."""
    plain = partial(Console, markup=False, emoji=False, highlight=False)
    console = plain()
    # A pipe or a log file has no width; names must not be cut there.
    return console if console.is_terminal else plain(width=120)


def size(n: float) -> str:
    """Format bytes with three digits: 1.25 GiB."""
    unit = 0
    while n >= 999.5 and unit < len(UNITS) - 1:
        n, unit = n / 1024, unit + 1
    return f"{n:.0f} B" if unit == 0 else f"{n:.{max(0, 2 - len(str(int(n))) + 1)}f} {UNITS[unit]}"


def duration(seconds: float) -> str:
    """Format seconds in their two largest units: 0.3 s, 45 s, 2 min 10 s, 3 h 20 min, 2 d 4 h."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    parts = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    largest = next(i for i, (unit, _) in enumerate(parts) if seconds >= unit)
    words = []
    for unit, name in parts[largest : largest + 2]:
        words.append(f"{int(seconds // unit)} {name}")
        seconds %= unit
    return " ".join(word for word in words if not word.startswith("0 "))
