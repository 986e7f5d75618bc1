"""Read documents from a data frame."""

from typing import Any

import pandas as pd
import pyarrow as pa

from bora.data import huggingface
from bora.data.columns import Columns, finish, text_table
from bora.data.errors import input_errors
from bora.errors import UserError

ARGUMENTS = {name: f"{name}=" for name in ("task", "text", "date", "messages", "prompt", "levels")}  # in errors


def documents(frame: Any, columns: Columns) -> pd.DataFrame:
    """Read a frame's columns as `bora.data.table.read` reads a file's; the index counts its rows.

    Raises:
        UserError: it is not a data frame, or a column is missing or holds something other than text.
    """
    with input_errors("the frame", ARGUMENTS):
        if hasattr(frame, "features") and hasattr(frame, "with_format"):  # a dataset of the datasets library
            return huggingface.documents(frame, columns)
        if isinstance(frame, pd.DataFrame):
            frame = frame.set_axis([str(c) for c in frame.columns], axis=1)
            names, parts = [*frame.columns], [frame]
        else:  # not by to_pandas, which turns integers with gaps into floats
            arrow = _arrow(frame)
            names, parts = arrow.column_names, arrow.to_batches()
        return finish(text_table(parts, columns.find(names)))


def _arrow(frame: Any) -> pa.Table:
    """Convert a frame of another library to an Arrow table; raise a UserError if it is not a frame."""
    try:
        if hasattr(frame, "__arrow_c_stream__") or hasattr(frame, "__arrow_c_array__"):
            return pa.table(frame)
    except (TypeError, ValueError, pa.ArrowException):
        pass  # such as a single column
    raise UserError(f"bora takes a pandas or Polars DataFrame or an Arrow table, not {type(frame).__name__}")
