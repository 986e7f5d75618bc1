"""New text for a finished run: a table as bora.data.table reads it, whose column of tasks may be missing."""

import hashlib
import json
from pathlib import Path

import pandas as pd

from bora.data.table import read
from bora.errors import InputError

# The reader's messages name the keys of a run's config; here they are flags.
FLAGS = {"data.path=": "--data ", "data.task=": "--task ", "data.text=": "--text "}


def read_texts(path: Path, text: str, task: str | None) -> pd.DataFrame:
    """Read the texts and, where there is such a column, their tasks.

    Args:
        path: see bora.data.table.read.
        text: column that holds the document.
        task: column that names the task; None for the first of task and rep_name that is there, if any.

    Returns:
        Columns `task` (empty where nothing is known) and `text`; the index counts the table's rows from 0.

    Raises:
        InputError: see bora.data.table.read.
    """
    try:
        return read(str(path), task=task, text=text, need_task=False)[["task", "text"]]
    except InputError as error:
        message = str(error)
        for key, flag in FLAGS.items():
            message = message.replace(key, flag)
        raise InputError(message) from error


def sha256(table: pd.DataFrame) -> str:
    """Of every row: one JSON line [row, task, text] each."""
    digest = hashlib.sha256()
    for row, task, text in zip(table.index, table["task"], table["text"], strict=True):
        digest.update(json.dumps([int(row), task, text]).encode() + b"\n")
    return digest.hexdigest()
