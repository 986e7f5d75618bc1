"""Find a table's columns (task, text, date, those of levels and of the prompt), and convert their cells to text.

Everything is text: a speaker may be called "NA", a task "007".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from bora.data.chat import to_messages
from bora.data.errors import ReadError
from bora.data.prompts import placeholders
from bora.data.task_names import normalise_names
from bora.errors import UserError, first_line, printable

# The column of tasks if none is named: the first of these that the table has.
TASK_COLUMNS = ("task", "rep_name")
LEVEL = "level:"  # prefix of the name of a level's column
MAX_LIST_CHARS = 300  # for the list of a table's columns in a message


@dataclass(frozen=True)
class Columns:
    """The columns of a table to read.

    Args:
        task: column with the task; None for the first of `tasks` that the table has.
        text: column with the document; None for the first of `texts` that the table has.
        date: column with the date; None for `date` if the table has it.
        messages: column with a chat, see bora.data.chat, which then replaces the text.
        prompt: columns that the prompt takes.
        levels: columns of the levels above the task.
        need_task: False accepts a table without a column of tasks if none is named.
        need_levels: False accepts a table without columns of levels.
    """

    task: str | None = None
    text: str | None = None
    date: str | None = None
    messages: str | None = None
    prompt: Sequence[str] = ()
    levels: Sequence[str] = ()
    need_task: bool = True
    need_levels: bool = True
    tasks: Sequence[str] = TASK_COLUMNS
    texts: Sequence[str] = ("text",)

    def find(self, available: Sequence[str]) -> dict[str, str]:
        """Find the columns in a table.

        Returns:
            task, text (or messages), date, each of the prompt's placeholders and each of the levels → its name in the
            table, without those that the table lacks.

        Raises:
            ReadError: a column is missing, or occurs twice.
        """
        shown = (name if name == name.strip() else repr(name) for name in available)  # quotes make spaces visible
        listed = printable(", ".join(shown)[:MAX_LIST_CHARS]) or "no columns"
        task = self.task or next((c for c in self.tasks if c in available), None)
        text = self.text or next((c for c in self.texts if c in available), self.texts[0])
        if task is None and self.need_task:
            raise ReadError("task", "COLUMN", f"name the column that holds the task; the table has {listed}")
        date = self.date or ("date" if "date" in available else None)
        document = {"text": text} if self.messages is None else {"messages": self.messages}
        named = {"task": task, **document, "date": date} | {f"{{{name}}}": name for name in self.prompt}
        levels = [name for name in self.levels if self.need_levels or name in available]
        named |= {f"{LEVEL}{name}": name for name in levels}
        found = {ours: name for ours, name in named.items() if name is not None}
        if text in self.prompt and self.messages is None:
            raise ReadError(
                "prompt",
                f"… {{{text}}} …",
                f"that column is the text, which the prompt would give away; name others of {listed}",
            )
        for ours, name in found.items():
            argument = "prompt" if ours[0] == "{" else "levels" if ours.startswith(LEVEL) else ours
            value = f"… {ours} …" if argument == "prompt" else name
            if name not in available:
                braces = "; a brace itself is written {{" if argument == "prompt" else ""
                raise ReadError(argument, value, f"there is no such column; the table has {listed}{braces}")
            if available.count(name) > 1:
                raise ReadError(argument, value, "the table has more than one such column; rename them")
        return found


ANY = Columns()  # no column is named


def text_table(parts: Iterable[Any], found: dict[str, str]) -> pa.Table:
    """Convert a table's cells to text, part by part.

    Args:
        parts: some rows each: a dictionary, a frame or a record batch, with values by the table's column.
        found: from `Columns.find`.

    Returns:
        A table whose columns are the keys of `found`.

    Raises:
        UserError: a value is not a text, chat or valid Unicode, see `to_text` and `to_messages`; or there are no rows.
    """
    tables: list[pa.Table] = []
    n_rows = 0
    for part in parts:
        columns: list[pa.Array] = []
        for ours, name in found.items():
            texts: list[str] = []
            convert = to_messages if ours == "messages" else to_text
            try:
                for value in _cells(part[name]):
                    texts.append(convert(value.as_py() if isinstance(value, pa.Scalar) else value))
                columns.append(pa.array(texts, pa.large_string()))
            except ValueError as error:
                # Arrow finds half a surrogate pair; otherwise it is the value after those already converted.
                row = texts.index(error.object) if isinstance(error, UnicodeEncodeError) else len(texts)
                what = "chat" if ours == "messages" else "text"
                raise UserError(
                    f"column {name!r} holds no {what} in row {n_rows + row} (counted from 0): {first_line(error)}"
                ) from error
        tables.append(pa.table(columns, list(found)))
        n_rows += tables[-1].num_rows
    if not n_rows:
        raise UserError("there are no rows")
    return pa.concat_tables(tables)


def _cells(values: Any) -> Any:
    """Return a column's values; floats of fewer than 64 bits as NumPy's, which print in their shortest form (2.1)."""
    if isinstance(values, pa.DictionaryArray):
        values = values.dictionary_decode()
    if isinstance(values, pa.Array):
        small = pa.types.is_floating(values.type) and values.type.bit_width < 64
        return values.to_numpy(zero_copy_only=False) if small else values
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, pd.CategoricalDtype):
        dtype = dtype.categories.dtype
    dtype = getattr(dtype, "numpy_dtype", dtype)  # for a column in a type of Arrow's or pandas' own
    small = isinstance(dtype, np.dtype) and dtype.kind == "f" and dtype.itemsize < 8
    return values.to_numpy(dtype, na_value=np.nan) if small else values


def to_text(value: Any) -> str:
    """Convert a cell to text: a missing value becomes '', a boolean 'true' or 'false'; bytes are decoded as UTF-8.

    A number is written as Python writes it, 1.0 or 0.1.

    Raises:
        ValueError: the cell is a list or an object, or bytes that are not UTF-8.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode()
    if not pd.api.types.is_scalar(value):
        raise ValueError(f"give a text or a number, not a {type(value).__name__}")
    if pd.isna(value):
        return ""
    if isinstance(value, np.floating):
        value = float(str(value))  # the shortest decimal that equals it in its own precision
    return str(value).lower() if isinstance(value, (bool, np.bool_)) else str(value)


def finish(table: pa.Table) -> pd.DataFrame:
    """Complete the frame that every reader returns: columns task, text and date ('' if there is none), one for each of
    the prompt's placeholders and one for each level, all text; its index counts the source's rows from 0.
    """
    frame = table.to_pandas().rename(columns={"messages": "text"})
    for ours in ("task", "date"):
        if ours not in frame:
            frame[ours] = ""
    levels = [column for column in frame if column.startswith(LEVEL)]
    for column in ["task", *levels]:
        frame[column] = normalise_names(frame[column])
    return frame[["task", "text", "date", *placeholders(frame), *levels]]


def level_cells(table: pd.DataFrame, columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the cells of each of the levels that the table has."""
    return {column: table[f"{LEVEL}{column}"].tolist() for column in columns if f"{LEVEL}{column}" in table}
