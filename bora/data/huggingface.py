"""Read Hugging Face datasets: a folder of `save_to_disk`, a folder of data files, or a name on the hub."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bora.data.columns import Columns, finish, text_table
from bora.data.errors import ReadError
from bora.errors import UserError, first_line

log = logging.getLogger(__name__)

SAVED = ("dataset_info.json", "dataset_dict.json")  # save_to_disk writes one of them


def read(path: str, split: str, subset: str | None, columns: Columns) -> pd.DataFrame:
    """Read the needed columns of one split, see `finish`.

    Args:
        path: a folder, or a dataset's name on the hub (or in its cache).
        split: the dataset's own split, from which bora's training, validation and test documents are all drawn;
            "all" joins all splits.
        subset: the dataset's configuration, if it has several.
        columns: the columns; class labels are read as the labels' names.

    Raises:
        ReadError: there is no such split or column.
        UserError: the package datasets is not installed, or no dataset can be loaded.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError("data=datasets needs the package datasets: pip install datasets") from error
    try:
        found = _load(path, subset)
        if isinstance(found, datasets.DatasetDict):
            parts = dict(found)
            if split != "all" and split not in parts:
                raise ReadError("split_name", split, f"the dataset has the splits {', '.join(parts)}; or give all")
            found = datasets.concatenate_datasets([*parts.values()]) if split == "all" else parts[split]
        return documents(found, columns)
    except UserError:
        raise
    except Exception as error:  # whatever the hub's client or a file's reader raises, the advice is the same
        reason = error.__cause__ or error
        raise UserError(
            f"no dataset could be loaded ({type(reason).__name__}: {first_line(reason)}); give a folder that "
            "save_to_disk wrote, a folder of data files, or a name on the hub"
        ) from error


def documents(found: Any, columns: Columns) -> pd.DataFrame:
    """Return the needed columns of a dataset, see `read`."""
    names = columns.find(found.column_names)
    values = {name: list(_values(found, name)) for name in names.values()}
    for ours, name in names.items():
        if ours != "date" and str(getattr(found.features[name], "dtype", "")).startswith("timestamp"):
            log.warning(
                "the datasets library reads the column %s as times, so its cells look like %s; to keep a file's text, "
                "give data=table data.path=FILE",
                name,
                values[name][0],
            )
    return finish(text_table([values], names))


def _load(path: str, subset: str | None) -> Any:
    """Load a dataset, or a dictionary of its splits."""
    import datasets

    folder = Path(path).expanduser()
    if any((folder / name).is_file() for name in SAVED):
        return datasets.load_from_disk(str(folder))
    path = str(folder) if folder.is_dir() else path
    return datasets.load_dataset(path, subset, **_cells_as_text(path, subset))


def _cells_as_text(path: str, subset: str | None) -> dict[str, Any]:
    """Return options that keep cells of CSV files as text: the library would read 007 as 7, and NA as a missing value.

    Class labels, which a dataset's card may declare, stay labels.
    """
    import datasets

    builder = datasets.load_dataset_builder(path, subset)
    if builder.name != "csv":
        return {}
    parts = datasets.load_dataset(path, subset, streaming=True)
    first_row: dict[str, Any] = next(iter(next(iter(parts.values()))), {})
    declared = builder.info.features or {}
    labels = {c: f for c, f in declared.items() if isinstance(f, datasets.ClassLabel)}
    text = {column: labels.get(column, datasets.Value("string")) for column in first_row}
    return {"features": datasets.Features(text), "keep_default_na": False}


def _values(found: Any, column: str) -> Iterable:
    """Return a column's values, with class labels as names."""
    feature = found.features[column]
    names, kind = getattr(feature, "names", None), str(getattr(feature, "dtype", ""))
    if kind in ("float32", "float16"):
        return (None if v is None else np.dtype(kind).type(v) for v in found[column])
    if names is None:
        return found[column]
    return (None if v is None or v < 0 else names[v] for v in found[column])
