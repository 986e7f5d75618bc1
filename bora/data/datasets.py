"""Reader of Hugging Face datasets: a folder that `save_to_disk` wrote, a folder of data files, or a name on the hub."""

from pathlib import Path
from typing import Any

import pandas as pd

from bora.data.table import columns_of, finish
from bora.errors import InputError, first_line

SAVED = ("dataset_info.json", "dataset_dict.json")  # one of them is in what save_to_disk wrote


def read(
    path: str,
    split: str = "train",
    subset: str | None = None,
    task: str | None = None,
    text: str = "text",
    date: str | None = None,
) -> pd.DataFrame:
    """Read one split's columns that are needed.

    Args:
        path: a folder, or a dataset's name on the hub (or in its cache).
        split: the dataset's own split; our training, validation and test documents are all drawn from it.
            "all" for all of them, one after the other.
        subset: the dataset's configuration, where it has several.
        task, text, date: columns, as in `bora.data.table.read`. A column of class labels gives the labels' names.

    Returns:
        Columns `task`, `text`, `date`; the index counts the rows from 0.

    Raises:
        InputError: the library is not installed, there is no such dataset, split or column.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise InputError("data=datasets needs its extra: pip install 'bora[datasets]'") from error
    folder = Path(path).expanduser()
    try:
        if any((folder / name).is_file() for name in SAVED):
            found = datasets.load_from_disk(str(folder))
        elif folder.is_absolute() or path.startswith((".", "~")) or folder.is_dir():
            if not folder.is_dir():
                raise InputError(f"data.path={path}: there is no such folder")
            found = datasets.load_dataset(str(folder), subset)
        else:
            found = datasets.load_dataset(path, subset)
    except InputError:
        raise
    except (
        Exception
    ) as error:  # whatever the hub's client or a file's reader raises, the user can do the same about it
        raise InputError(
            f"data.path={path} could not be loaded as a dataset ({type(error).__name__}: {first_line(error)})"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if split == "all":
            found = datasets.concatenate_datasets(list(found.values()))
        elif split in found:
            found = found[split]
        else:
            raise InputError(
                f"data.split_name={split}: {path} has the splits {', '.join(found)}; or give all"
            )
    names = columns_of(found.column_names, path, task, text, date)
    return finish(pd.DataFrame({c: _texts(found, c) for c in names}, dtype=str), names)


def _texts(found: Any, column: str) -> list[str]:
    """A column as text: class labels by name, nothing as the empty string."""
    names = getattr(found.features[column], "names", None)
    values = found[column]
    if names is not None:
        return ["" if v is None or v < 0 else names[v] for v in values]
    return ["" if v is None else str(v) for v in values]
