"""The columns task, text and date of any table, and their cells as text.

Everything is text: a speaker may be called "NA", a task "007".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from bora.data.errors import ReadError
from bora.data.task_names import normalise_names
from bora.errors import UserError, first_line

# The column of tasks where none is named: the first of these that the table has.
TASK_COLUMNS = ("task", "rep_name")
MAX_SHOWN_NAMES, MAX_SHOWN_CHARS = 30, 60  # in a message that lists columns


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are meant.

    Args:
        task: names the task; None for the first of TASK_COLUMNS.
        text: holds the document.
        date: None for `date` where there is one.
        need_task: False if a table without a column of tasks will do where none is named.
    """

    task: str | None = None
    text: str = "text"
    date: str | None = None
    need_task: bool = True

    def find(self, available: list[str]) -> dict[str, str]:
        """Find the columns in a table: {the table's name: task, text or date}.

        Raises:
            ReadError: a column is missing, or there twice, or two of the three are one.
        """
        task, date = self.task, self.date
        if task is None:
            task = next((c for c in TASK_COLUMNS if c in available and c != self.text), None)
        if task is None and self.need_task:
            problem = f"name the column that holds the task; the table has {list_names(available)}"
            raise ReadError("task", "COLUMN", problem)
        if date is None and "date" in available and "date" not in (task, self.text):
            date = "date"
        found: dict[str, str] = {}
        for ours, name in (("task", task), ("text", self.text), ("date", date)):
            if name is None:
                continue
            if name not in available:
                raise ReadError(ours, name, f"there is no such column; the table has {list_names(available)}")
            if available.count(name) > 1:
                raise ReadError(ours, name, "the table has more than one such column; rename them")
            if name in found:
                raise ReadError(ours, name, f"that column is the {found[name]}, too; give different columns")
            found[name] = ours
        return found


def list_names(names: list[str]) -> str:
    """List column names in one short line, whatever they hold."""
    shown = [n if n.isprintable() else repr(n) for n in (n[:MAX_SHOWN_CHARS] for n in names[:MAX_SHOWN_NAMES])]
    return ", ".join(shown) + f" and {len(names) - MAX_SHOWN_NAMES} more" * (len(names) > MAX_SHOWN_NAMES)


def from_values(values: Mapping[str, Iterable] | pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """Convert any values to text: missing values become '', booleans 'true'/'false', times with a zone UTC.

    A number is written as Python writes it, 1.0 or 0.1, in its own precision.

    Args:
        values: by column of the table.

    Returns:
        See `finish`.

    Raises:
        UserError: a value is a list, an object, bytes, or half a surrogate pair; or there are no rows.
    """
    table = {}
    for column, ours in columns.find([*values]).items():
        given, cells = values[column], []
        if isinstance(given, pd.Series) and given.dtype.kind == "f":
            given = given.to_numpy()  # its numbers know their precision
        for row, value in enumerate(given):
            try:
                cells.append(value if isinstance(value, str) else _to_text(value))
                cells[-1].encode("utf-8")
            except (TypeError, ValueError, ArithmeticError) as error:
                raise UserError(
                    f"column {column!r} holds a {type(value).__name__} in row {row} (counted from 0), which cannot be "
                    f"written down as text ({first_line(error)})"
                ) from error
        table[ours] = pa.array(cells, pa.large_string()).to_pandas()
    return finish(pd.DataFrame(table))


def _to_text(value: Any) -> str:
    """Convert a value to text.

    Raises:
        TypeError, ValueError, ArithmeticError: it has no text.
    """
    if isinstance(value, bytes) or not pd.api.types.is_scalar(value):
        raise TypeError("give a text or a number")
    if pd.isna(value):
        return ""
    if isinstance(value, (bool, np.bool_)):
        return str(value).lower()
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC)
    return str(value)


def from_arrow(table: pa.Table, columns: Columns) -> pd.DataFrame:
    """Convert an Arrow table as `from_values` does, a column at a time; integers stay integers beside missing values.

    Raises:
        UserError: a column is not text; or there are no rows.
    """
    found = {}
    for column, ours in columns.find(table.column_names).items():
        cells = table[column]
        try:
            if pa.types.is_floating(cells.type):  # as numpy writes it; Arrow would write 1 for 1.0
                numbers = cells.to_numpy()
                cells = pa.chunked_array(
                    [pa.array(["" if np.isnan(n) else str(n) for n in numbers], pa.large_string())]
                )
            cells = cells.cast(pa.large_string()).fill_null("")
            cells.validate(full=True)  # checks the UTF-8, which reading does not
        except (pa.ArrowException, ValueError) as error:
            raise UserError(f"column {column!r} of type {cells.type} is not text ({error})") from error
        found[ours] = cells.to_pandas()
    return finish(pd.DataFrame(found))


def finish(table: pd.DataFrame) -> pd.DataFrame:
    """Complete a table: columns task, text and date, '' where there is none, and each task's name in one spelling.

    Raises:
        UserError: there are no rows, or a task's name holds a control character.
    """
    if table.empty:
        raise UserError("there are no rows")
    for ours in ("task", "date"):
        if ours not in table:
            table[ours] = ""
    table["task"] = normalise_names(table["task"])
    return table[["task", "text", "date"]]
