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

# The column of tasks where none is named: the first of these that the table has.
TASK_COLUMNS = ("task", "rep_name")
LEVEL = "level:"  # before the name of a level's column
MAX_LIST_CHARS = 300  # of a table's columns in a message


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are meant.

    Args:
        task: names the task; None for the first of `tasks` that the table has.
        text: holds the document; None for the first of `texts` that the table has.
        date: None for `date` where there is one.
        messages: holds a chat, see bora.data.chat; then there is no text beside it.
        prompt: columns that the prompt takes.
        levels: columns above the task.
        need_task: False if a table without a column of tasks will do where none is named.
        need_levels: False if a table without columns of levels will do.
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
            task, text (or messages), date, each of the prompt's placeholders and each of the levels → the table's name
            for it, without those it lacks.

        Raises:
            ReadError: a column is missing, or there twice.
        """
        shown = (name if name == name.strip() else repr(name) for name in available)  # a space would not be seen
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
                f"that is the text, which the prompt would give away; name others of {listed}",
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


ANY = Columns()  # where no column is named


def text_table(parts: Iterable[Any], found: dict[str, str]) -> pa.Table:
    """Convert a table's cells to text, a part of it at a time.

    Args:
        parts: each gives the values of some rows by the table's column: a dictionary, a frame or a record batch.
        found: from `Columns.find`.

    Returns:
        Columns as the keys of `found`.

    Raises:
        UserError: a value is no text, chat or valid Unicode, see `to_text` and `to_messages`; or there are no rows.
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
                # Arrow finds half a surrogate pair; else it is the value after those converted.
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
    """Return a column's values; numbers of fewer than 64 bits as NumPy's, which knows that they are 2.1, say."""
    if isinstance(values, pa.DictionaryArray):
        values = values.dictionary_decode()
    if isinstance(values, pa.Array):
        small = pa.types.is_floating(values.type) and values.type.bit_width < 64
        return values.to_numpy(zero_copy_only=False) if small else values
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, pd.CategoricalDtype):
        dtype = dtype.categories.dtype
    dtype = getattr(dtype, "numpy_dtype", dtype)  # of a column that Arrow or pandas itself keeps
    small = isinstance(dtype, np.dtype) and dtype.kind == "f" and dtype.itemsize < 8
    return values.to_numpy(dtype, na_value=np.nan) if small else values


def to_text(value: Any) -> str:
    """Convert a cell to text: a missing value becomes '', a boolean 'true' or 'false', bytes what they are in UTF-8.

    A number is written as Python writes it, 1.0 or 0.1.

    Raises:
        ValueError: it is a list or an object, or bytes that are not UTF-8.
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
        value = float(str(value))  # the shortest number that is this one in its own precision
    return str(value).lower() if isinstance(value, (bool, np.bool_)) else str(value)


def finish(table: pa.Table) -> pd.DataFrame:
    """Complete what every reader returns: its columns task, text and date, '' where there is none, one for each of the
    prompt's placeholders and one for each level, all text; its index counts the source's rows from 0.
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
    """List the cells of those levels that the table has."""
    return {column: table[f"{LEVEL}{column}"].tolist() for column in columns if f"{LEVEL}{column}" in table}
