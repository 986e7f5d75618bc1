"""The tables that a run and a sweep print at their end."""

from functools import partial

import pandas as pd
from rich.console import Console
from rich.table import Table


def plain_console() -> Console:
    """Standard output, where a task's name is not markup."""
    plain = partial(Console, markup=False, emoji=False, highlight=False)
    console = plain()
    # A pipe or a log file has no width of its own; never cut a name there.
    return console if console.is_terminal else plain(width=120)


def print_tasks(per_task: pd.DataFrame, summary: dict) -> None:
    """One row a task, the whole corpus below."""
    table = Table(title=f"τ = {float(summary['tau']):g}", title_justify="left")
    table.add_column("task", overflow="fold")
    for column in ("train docs", "validation ppl", "test ppl", "‖θ−Θ‖"):
        table.add_column(column, justify="right")
    for row in per_task.itertuples():
        table.add_row(
            f"{row.task}",
            f"{row.n_train}",
            f"{row.val_perplexity:.2f}",
            f"{row.test_perplexity:.2f}",
            f"{row.distance:.3f}",
        )
    table.add_section()
    # A perplexity beyond all numbers stands as "inf" in the file.
    val, test, val_macro, test_macro, base = (
        f"{float(summary[key]):.2f}"
        for key in (
            "val_perplexity",
            "test_perplexity",
            "val_perplexity_macro",
            "test_perplexity_macro",
            "base_test_perplexity",
        )
    )
    table.add_row("all (by token)", f"{per_task.n_train.sum()}", val, test, "")
    table.add_row("mean over tasks", "", val_macro, test_macro, "")
    table.add_row("frozen backbone", "", "", base, "")
    plain_console().print(table)


def print_sweep(summaries: list[dict]) -> None:
    """τ → perplexity, one row a finished run, the best validation perplexity marked."""
    table = Table(title="τ → perplexity", title_justify="left")
    for column in ("τ", "seed", "learning rate", "validation ppl", "test ppl", "best epoch", "run"):
        table.add_column(column, justify="left" if column == "run" else "right", overflow="fold")
    best = min(summaries, key=lambda s: float(s["val_perplexity"]), default=None)
    for s in sorted(summaries, key=lambda s: (float(s["tau"]), s["seed"])):
        table.add_row(
            f"{float(s['tau']):g}",
            str(s["seed"]),
            f"{s['lr']:g}",
            f"{float(s['val_perplexity']):.2f}" + (" *" if s is best else "  "),
            f"{float(s['test_perplexity']):.2f}",
            str(s["best_epoch"]),
            s["run"],
        )
    table.caption = "* best on validation"
    table.caption_justify = "left"
    plain_console().print(table)
