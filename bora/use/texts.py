"""Read new texts for a finished run: a table as bora.data.table reads it; its column of tasks may be missing."""

import hashlib
import json
from pathlib import Path

import pandas as pd

from bora.data.columns import Columns
from bora.data.errors import input_errors
from bora.data.table import read, require_file

FLAGS = {"path": "--data ", "task": "--task ", "text": "--text "}  # by the reader's arguments


def check_exists(path: Path) -> None:
    """Check that there is such a file, before a large model is loaded.

    Raises:
        UserError: there is none.
    """
    with input_errors(path, FLAGS):
        require_file(path)


def read_texts(path: Path, text: str, task: str | None, need_task: bool = False) -> pd.DataFrame:
    """Read the texts and, where there is such a column, their tasks.

    Args:
        path: see bora.data.table.read.
        text: column that holds the document.
        task: column that names the task; None for the first of task and rep_name, if there is one.
        need_task: refuse a table without one.

    Returns:
        Columns `task` ('' where it is not known) and `text`; the index counts the table's rows from 0.

    Raises:
        UserError: see bora.data.table.read; names the flag at fault.
    """
    with input_errors(path, FLAGS):
        return read(path, Columns(task, text, need_task=need_task))[["task", "text"]]


def sha256(table: pd.DataFrame) -> str:
    """Hash every row: one JSON line [row, task, text] each."""
    digest = hashlib.sha256()
    for row, task, text in zip(table.index, table["task"], table["text"], strict=True):
        digest.update(json.dumps([int(row), task, text]).encode() + b"\n")
    return digest.hexdigest()
