"""Read the documents that a config's `data` names."""

from collections.abc import Iterable, Mapping

import pandas as pd

from bora.config.schema import AnyData, TabularData
from bora.data import huggingface, stdlib, table, talk_of_norway
from bora.data.columns import Columns
from bora.data.errors import SETTINGS, input_errors
from bora.data.prompts import prompt_columns
from bora.errors import UserError


def columns_of(data: TabularData) -> Columns:
    """Return the columns that a config's `data` names."""
    return Columns(data.task, data.text, data.date, data.messages, prompt_columns(data.prompt), data.levels)


def read_column(data: AnyData, column: str, rows: Iterable[int], argument: str) -> list[str]:
    """Read a column's cells in some rows of the table, as text.

    Args:
        argument: the user's name for the column, for messages.

    Raises:
        UserError: the corpus is not a table, the file has moved, or it has no such column.
    """
    # The column is read instead of the text.
    only = {"text": column, "prompt": None} | ({"messages": None} if isinstance(data, TabularData) else {})
    table = read_documents(data.model_copy(update=only), SETTINGS | {"text": argument})
    return table["text"].reindex(list(rows)).tolist()


def read_documents(data: AnyData, names: Mapping[str, str] = SETTINGS) -> pd.DataFrame:
    """Read a corpus with the reader of its `source`; see `bora.data.columns.finish` for what it returns.

    Args:
        names: the user's name for each argument of a reader, for messages.

    Raises:
        UserError: the input cannot be used; names the setting at fault.
    """
    if data.source == "frame":
        raise UserError("data=frame is for bora.fit in Python; here give data=table data.path=FILE")
    if data.source == "stdlib":
        with input_errors(None, names):
            return stdlib.read(
                data.modules, Columns(text=data.text, prompt=prompt_columns(data.prompt), levels=data.levels)
            )
    columns = columns_of(data)
    with input_errors(data.path, names):
        if data.source == "table":
            return table.read(data.path, columns)
        if data.source == "datasets":
            return huggingface.read(data.path, data.split_name, data.subset, columns)
        return talk_of_norway.read(data.path, data.url, columns)
