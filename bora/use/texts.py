"""New text for a finished run: a table as bora.data.table reads it, whose column of tasks may be missing."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from bora.data.table import existing, read
from bora.errors import UserError

# The reader's messages name the keys of a run's config; here they are flags.
FLAGS = {"data.path=": "--data ", "data.task=": "--task ", "data.text=": "--text "}


@contextmanager
def _as_flags() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        message = str(error)
        for key, flag in FLAGS.items():
            message = message.replace(key, flag)
        raise UserError(message) from error


def check_there(path: Path) -> None:
    """Before a large model is loaded.

    Raises:
        UserError: there is no such file.
    """
    with _as_flags():
        existing(path)


def read_texts(path: Path, text: str, task: str | None, need_task: bool = False) -> pd.DataFrame:
    """Read the texts and, where there is such a column, their tasks.

    Args:
        path: see bora.data.table.read.
        text: column that holds the document.
        task: column that names the task; None for the first of task and rep_name that is there, if any.
        need_task: refuse a table without one.

    Returns:
        Columns `task` (empty where nothing is known) and `text`; the index counts the table's rows from 0.

    Raises:
        UserError: see bora.data.table.read.
    """
    with _as_flags():
        return read(str(path), task=task, text=text, need_task=need_task)[["task", "text"]]


def sha256(table: pd.DataFrame) -> str:
    """Of every row: one JSON line [row, task, text] each."""
    digest = hashlib.sha256()
    for row, task, text in zip(table.index, table["task"], table["text"], strict=True):
        digest.update(json.dumps([int(row), task, text]).encode() + b"\n")
    return digest.hexdigest()
