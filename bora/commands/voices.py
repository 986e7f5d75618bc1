"""The command `bora voices RUN`: show how each task speaks: its own tokens, and how it continues one prompt."""

import argparse
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from bora.commands.common import COUNT, add_device, run_parser, utf8
from bora.commands.exits import cli_errors
from bora.data.prompts import prompt_columns
from bora.errors import UserError
from bora.lib.console import plain_console, short_path, tell
from bora.lib.names import one_line
from bora.report.voices import arrange_voices
from bora.runs.corpus import split_documents
from bora.runs.directory import RunDirectory
from bora.use.restore import find_tasks, restore
from bora.use.voices import MAX_NEW_TOKENS, find_voices, require_voices, write_voices

MAX_SHOWN = 30  # tasks on the terminal


def parser() -> argparse.ArgumentParser:
    parser = run_parser(
        "voices",
        "Show how each task speaks: the tokens that set it apart from Θ in the run's validation documents, and how it "
        "continues one prompt.",
    )
    add = parser.add_argument
    asked = "a text, or the cells of each column that the run's prompt uses (the start of a validation document)"
    add("--prompt", nargs="+", metavar="TEXT|COLUMN=CELL", type=utf8, help=asked)
    add("--tasks", nargs="+", type=utf8, metavar="NAME", help="tasks, or the beginnings of their names (all)")
    add("-n", "--documents", **COUNT, help="draw at most N documents of each task at random (all)")
    add(
        "--max-new-tokens", **COUNT, default=MAX_NEW_TOKENS, help=f"tokens after the prompt, at most ({MAX_NEW_TOKENS})"
    )
    add("--batch-size", **COUNT, default=32, help="rows in a forward pass (32)")
    add_device(parser)
    return parser


def read_prompt(words: Sequence[str], columns: Sequence[str]) -> Any:
    """Read --prompt: COLUMN=CELL for each of the columns, or one text."""
    cells = dict(word.partition("=")[::2] for word in words)
    if columns and cells.keys() == set(columns):
        return cells
    if len(words) > 1:
        takes = f"give {' '.join(f'{name}=CELL' for name in columns)}" if columns else "give one text, in quotes"
        raise UserError(f"--prompt: {takes}")
    return words[0]


def show(tokens: pd.DataFrame, continuations: pd.DataFrame) -> None:
    """Print one row for each speaker, Θ first, then the tasks by their gain."""
    rows = arrange_voices(tokens, continuations)
    prompt = one_line(continuations["prompt"].iloc[0])
    table = Table(
        title=f"how each task speaks: its most characteristic tokens, and how it continues “{prompt}”",
        title_justify="left",
        caption="below a task: its gain over Θ, nats a token; below a token: its part of that gain, thousandths of a nat",
        caption_justify="left",
        show_header=False,
        show_lines=True,
    )
    table.add_column(overflow="fold", max_width=20)
    table.add_column(overflow="fold")
    for row in rows.head(MAX_SHOWN + 1).to_dict("records"):
        gain = "" if pd.isna(row["gain"]) else f"\n{row['gain']:+.3f}".replace("-", "−")
        voice = Text.assemble((row["tokens"], "bold"), "\n" if row["tokens"] else "", row["says"])
        table.add_row(row["task"] + gain, voice)
    console = plain_console()
    console.print(table)
    if len(rows) > MAX_SHOWN + 1:
        console.print(f"and {len(rows) - MAX_SHOWN - 1:,} more tasks, in the files; --tasks shows those named")


def main() -> None:
    arguments = parser().parse_args()
    with cli_errors():
        directory = RunDirectory(arguments.run)
        require_voices(directory.summary())
        names = directory.per_task()["task"].tolist()
        tasks = names if arguments.tasks is None else [*dict.fromkeys(find_tasks(arguments.tasks, names))]
        columns = prompt_columns(directory.config().data.prompt)
        prompt = None if arguments.prompt is None else read_prompt(arguments.prompt, columns)
        table = split_documents(directory, "validation")
        tell(f"loading {arguments.run}")
        restored = restore(arguments.run, arguments.device, arguments.dtype)
        how = {name: getattr(arguments, name) for name in ("documents", "batch_size", "max_new_tokens")}
        tokens, continuations = find_voices(restored, table, tasks, prompt, **how)
        about = {"tau": restored.model.tau, "data_sha256": restored.summary["data_sha256"], "tasks": tasks, **how}
        out = write_voices(tokens, continuations, directory.path, about)
        show(tokens, continuations)
        print(f"voices: {short_path(out)}")
