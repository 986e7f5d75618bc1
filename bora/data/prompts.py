"""Prompts with columns: `{article}` in data.prompt stands for the document's cell in the column article.

A table that was read with such a prompt has a column for each placeholder, named with its braces: "{article}".
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")
TASK = "{task}"


def prompt_columns(prompt: str | None) -> tuple[str, ...]:
    """List the columns that a prompt takes besides the task, each once, in the prompt's order."""
    found = (match[1] for match in PLACEHOLDER.finditer(prompt or ""))
    return tuple(dict.fromkeys(name for name in found if name and name != "task"))


def fill(prompt: str, values: Mapping[str, str]) -> str:
    """Replace a prompt's placeholders by values, once, so that braces inside a value stay; `{{` is a brace.

    Args:
        values: placeholder, with its braces → what it stands for.
    """
    return PLACEHOLDER.sub(lambda match: values[match[0]] if match[1] else match[0][0], prompt)


def placeholders(table: pd.DataFrame) -> list[str]:
    """List the columns of a table that are placeholders of its prompt."""
    return [column for column in table.columns if column.startswith("{")]


def whole_texts(table: pd.DataFrame) -> pd.Series:
    """Join each row's text with its prompt's cells, since rows that differ in either are different documents."""
    texts = table["text"]
    for column in placeholders(table):
        texts = table[column] + "\x1e" + texts
    return texts


def show_prompt(prompt: Any) -> str:
    """Format a document's prompt for people: a text, the cells of a row, or the last message of a chat."""
    if isinstance(prompt, list):
        return str(prompt[-1]["content"]) if prompt else ""
    if isinstance(prompt, dict):
        return next(iter(prompt.values())) if len(prompt) == 1 else json.dumps(prompt, ensure_ascii=False)
    return str(prompt)


def prompt_cells(table: pd.DataFrame) -> list[dict[str, str]]:
    """List the cells of each row's prompt: placeholder → cell."""
    names = placeholders(table)
    return [dict(zip(names, cells, strict=True)) for cells in table[names].to_numpy()]
