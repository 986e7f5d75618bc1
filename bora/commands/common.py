"""Flags and input that several commands share."""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from bora.config.schema import Count, Dtype
from bora.data.columns import TASK_COLUMNS, Columns
from bora.data.errors import input_errors
from bora.data.prompts import prompt_columns
from bora.data.table import read
from bora.lib.files import user_path
from bora.runs.directory import RunDirectory

READER_FLAGS = {
    "path": "--data ",
    "task": "--task ",
    "text": "--text ",
    "date": "the column ",
    "messages": "--text ",
    "prompt": "the run's data.prompt=",
    "levels": "the run's data.levels=",
}  # a reader's argument → how errors name it


def run_parser(command: str, description: str) -> argparse.ArgumentParser:
    """Make a parser with the argument RUN."""
    parser = argparse.ArgumentParser(prog=f"bora {command}", description=description)
    parser.add_argument("run", type=user_path, metavar="RUN", help="a finished run's folder")
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device and --dtype."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (cpu)")
    parser.add_argument("--dtype", choices=get_args(Dtype), help="precision of the backbone (as in training)")


def add_table(parser: argparse.ArgumentParser) -> None:
    """Add --data, --text and --task, which `columns_of` reads."""
    formats = "a table of documents: CSV, TSV, JSON lines or Parquet, the first three also compressed"
    parser.add_argument("--data", required=True, type=user_path, metavar="FILE", help=formats)
    run = "the run's own, if the table has it, else"
    parser.add_argument("--text", metavar="COLUMN", help=f"column with the document, or chat ({run} text)")
    parser.add_argument("--task", metavar="COLUMN", help=f"column with the task ({run} task or rep_name, if any)")


def utf8(word: str) -> str:
    """Decode a word of the command line as UTF-8, whatever the locale; for argparse."""
    try:
        return os.fsencode(word).decode()
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"{word!a} is not UTF-8") from error


def checked(kind: Any) -> Callable[[str], Any]:
    """Make an argparse type that converts and checks as a pydantic type does."""
    adapter = TypeAdapter(kind)

    def convert(text: str) -> Any:
        try:
            return adapter.validate_strings(text)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error.errors()[0]['msg']}") from error

    return convert


COUNT: dict[str, Any] = {"type": checked(Count), "metavar": "N"}  # a flag's value: a whole number above 0


def columns_of(arguments: argparse.Namespace, need_task: bool = False) -> Columns:
    """Return --text and --task, or where to look for them: first among the columns that the run was trained on.

    Args:
        need_task: refuse a table without a column of tasks.
    """
    directory = RunDirectory(arguments.run)
    directory.summary()  # raises if the run is unfinished
    own = directory.config().data.model_dump()  # has no columns if the corpus is not a table
    tasks = tuple(filter(None, [own.get("task"), *TASK_COLUMNS]))
    texts = tuple(filter(None, [own.get("text"), "text"]))
    chat = own.get("messages") and (arguments.text or own["messages"])
    named = Columns(arguments.task, arguments.text, None, chat, prompt_columns(own["prompt"]), own["levels"])
    return replace(named, need_task=need_task, need_levels=False, tasks=tasks, texts=texts)


def read_texts(path: Path, columns: Columns) -> pd.DataFrame:
    """Read a table of texts and, if it has such a column, their tasks.

    Returns:
        Columns `task` ('' if it is unknown), `text`, those that the run's prompt uses and those of its levels that the
        table has; the index counts the table's rows from 0.
    """
    with input_errors(path, READER_FLAGS):
        return read(path, columns).drop(columns="date")
