"""The columns task, text and date of whatever table, and their cells as text.

Everything is text: a speaker may be called "NA", a task may be "007".
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from bora.errors import UserError, first_line
from bora.lib.names import one_spelling

# Where data.task is not given, the first of these columns that the table has.
TASK_COLUMNS = ("task", "rep_name")
OPTIONAL = "\0optional"  # in the place of a column: one of these, if there is one; no column is called so
NAMES_SHOWN, CHARACTERS_SHOWN = 30, 60  # in a message that lists columns


def columns_of(
    available: list[str], path: Path | str, task: str | None, text: str, date: str | None
) -> dict[str, str]:
    """Which of the table's columns are task, text and date: {column in the table: our name}.

    Raises:
        UserError: one that is needed is missing, or there twice.
    """

    def need(option: str, name: str) -> str:
        if name not in available:
            raise UserError(f"data.{option}={name}: {path} has no such column; it has {_listed(available)}")
        if available.count(name) > 1:
            raise UserError(f"{path} has more than one column {name!r}; rename them")
        return name

    if task in (None, OPTIONAL):
        needed, task = task is None, next((c for c in TASK_COLUMNS if c in available and c != text), None)
        if task is None and needed:
            raise UserError(
                f"data.task is not given and {path} has no column {' or '.join(TASK_COLUMNS)}; "
                f"name the column that holds the task: data.task=COLUMN, one of {_listed(available)}"
            )
    if date is None and "date" in available and "date" not in (task, text):
        date = "date"
    chosen = {} if task is None else {"task": need("task", task)}
    chosen["text"] = need("text", text)
    if date is not None:
        chosen["date"] = need("date", date)
    if len(set(chosen.values())) < len(chosen):
        raise UserError(
            "task, text and date must be different columns, not "
            + ", ".join(f"data.{option}={name}" for option, name in chosen.items())
        )
    return {name: ours for ours, name in chosen.items()}


def _listed(names: list[str]) -> str:
    """Column names as one short line, whatever they hold."""
    shown = [n[:CHARACTERS_SHOWN] + "…" * (len(n) > CHARACTERS_SHOWN) for n in names[:NAMES_SHOWN]]
    shown = [n if n.isprintable() else repr(n) for n in shown]
    more = [f"{len(names) - NAMES_SHOWN} more"] * (len(names) > NAMES_SHOWN)
    return ", ".join([*shown, *more])


def from_values(columns: Mapping[str, Iterable], names: Mapping[str, str], source: str) -> pd.DataFrame:
    """A table of any values as text: None, NaN and the like as the empty string, truth as JSON and Parquet write it.

    A number is written as Python writes it, 1.0 or 0.1, in its own precision; a moment with a time zone in UTC.

    Args:
        columns: the values by column.
        names: see `columns_of`.
        source: where they are from, for messages.

    Raises:
        UserError: a value that is more than one (a list, an object), is bytes, or is no text that can be written
            down; or no rows.
    """
    table = {}
    for column, ours in names.items():
        values, cells = columns[column], []
        if isinstance(values, pd.Series) and isinstance(values.dtype, np.dtype) and values.dtype.kind == "f":
            values = values.to_numpy()  # whose numbers know their precision
        for row, value in enumerate(values):
            try:
                cells.append(value if isinstance(value, str) else _written(value))
            except (TypeError, ValueError, ArithmeticError) as error:
                what = (
                    "not a text or a number"
                    if isinstance(error, TypeError)
                    else "which cannot be written down"
                )
                raise UserError(
                    f"{source}: column {column!r} holds a {type(value).__name__} in row {row} (counted from 0), {what}"
                ) from error
        try:
            table[ours] = pa.array(cells, pa.large_string()).to_pandas()
        except UnicodeEncodeError as error:
            row = next(i for i, c in enumerate(cells) if any("\ud800" <= letter <= "\udfff" for letter in c))
            raise UserError(
                f"{source}: column {column!r} holds half a surrogate pair in row {row} (counted from 0), which is no "
                "character; write the text anew"
            ) from error
    return finish(pd.DataFrame(table), source)


def _written(value: Any) -> str:
    """A value that is no text, as text.

    Raises:
        TypeError, ValueError, ArithmeticError: it cannot be.
    """
    if isinstance(value, bytes) or not pd.api.types.is_scalar(value):
        raise TypeError(value)
    if pd.isna(value):
        return ""
    if isinstance(value, (bool, np.bool_)):
        return str(value).lower()
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC)
    return str(value)


def from_arrow(table: pa.Table, names: Mapping[str, str], source: str) -> pd.DataFrame:
    """`from_values` for Arrow, which casts whole columns, and integers with gaps as they are.

    Raises:
        UserError: a column that is no text; or no rows.
    """
    columns = {}
    for column, ours in names.items():
        cells = table[column]
        try:
            if pa.types.is_floating(cells.type):  # as numpy writes it; Arrow would write 1 for 1.0
                numbers = cells.to_numpy()
                cells = pa.chunked_array(
                    [pa.array(["" if np.isnan(n) else str(n) for n in numbers], pa.large_string())]
                )
            cells = cells.cast(pa.large_string()).fill_null("")
            cells.validate(full=True)  # that it is UTF-8, which nobody has looked at yet
        except (pa.ArrowException, ValueError) as error:
            raise UserError(
                f"{source} is not readable: column {column!r} of type {cells.type} is no text ({first_line(error)})"
            ) from error
        columns[ours] = cells.to_pandas()
    return finish(pd.DataFrame(columns), source)


def finish(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Columns task, text and date, the empty string for what is not there, and each task's name in one spelling.

    Raises:
        UserError: no rows, or a task's name that cannot be one.
    """
    if table.empty:
        raise UserError(f"{source} holds no rows")
    for ours in ("task", "date"):
        if ours not in table:
            table[ours] = ""
    table["task"] = one_spelling(table["task"], source)
    return table[["task", "text", "date"]]
