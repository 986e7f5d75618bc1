"""Read a finished run's documents again, from the source in its config."""

from pathlib import Path

import pandas as pd

from bora.data.prompts import whole_texts
from bora.data.read import read_documents
from bora.errors import UserError
from bora.runs.directory import RunDirectory
from bora.runs.values import hash_text


def split_documents(directory: RunDirectory, *splits: str, table: pd.DataFrame | None = None) -> pd.DataFrame:
    """Read a run's documents of some splits: columns task, text and those that prompts need, indexed by row.

    Args:
        splits: train, validation or both.
        table: the corpus, if the config cannot say where it is, as for a run on a data frame.

    Raises:
        UserError: the run held no documents out, or its corpus is missing or has changed.
    """
    if "adapted_from" in directory.summary():
        raise UserError(
            f"{directory.path} was made by bora adapt, which holds no documents out; give a run of bora run"
        )
    documents = directory.documents().query("split in @splits").drop_duplicates("row")
    data = directory.config().data
    if table is None and data.source == "frame":
        raise UserError(
            "the run was trained on a data frame, which is not saved with it: in Python, give it as frame=; for a "
            "command, save it as a table and train with data=table"
        )
    if table is None:
        try:
            table = read_documents(data)
        except UserError as error:
            if (path := getattr(data, "path", None)) is None or Path(path).expanduser().is_absolute():
                raise
            raise UserError(
                f"{error}; the path is relative to the folder where the run was started; run this command there"
            ) from error
    found = table.reindex(documents["row"]).assign(task=documents["task"].to_numpy())
    known = directory.trained_on()
    if found["text"].isna().any() or not (known is None or known.issuperset(map(hash_text, whole_texts(found)))):
        raise UserError("the corpus has changed since the run was trained on it; restore the file as it was then")
    return found
