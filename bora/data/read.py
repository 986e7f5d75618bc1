"""Where documents come from: data.source."""

import pandas as pd

from bora.config import AnyData
from bora.data import datasets, stdlib, table, talk_of_norway
from bora.errors import UserError


def read_documents(data: AnyData) -> pd.DataFrame:
    """Read a corpus: columns task, text, date; the index counts the source's rows.

    Raises:
        UserError: it cannot be read.
    """
    match data.source:
        case "table":
            return table.read(data.path, data.task, data.text, data.date)
        case "datasets":
            return datasets.read(data.path, data.split_name, data.subset, data.task, data.text, data.date)
        case "talk_of_norway":
            return talk_of_norway.read(
                data.path, data.url, data.task or "rep_name", data.text, data.date or "date"
            )
        case "stdlib":
            return stdlib.read(data.modules)
    raise UserError("data=frame is for bora.fit in Python; here give data=table data.path=FILE")
