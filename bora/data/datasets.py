"""Reader of Hugging Face datasets: a folder that `save_to_disk` wrote, a folder of data files, or a name on the hub."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from bora.data.columns import columns_of, from_values
from bora.errors import UserError, first_line

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
        UserError: the library is not installed, there is no such dataset, split or column.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError("data=datasets needs its extra: pip install 'bora[datasets]'") from error
    try:
        with _quiet():
            found = _load(path, subset)
            if isinstance(found, datasets.DatasetDict):
                found = _of_splits(found, path, split)
            names = columns_of(found.column_names, path, task, text, date)
            values = {c: list(_values(found, c)) for c in names}
    except UserError:
        raise
    except (
        Exception
    ) as error:  # whatever the hub's client or a file's reader raises, the user can do the same about it
        raise UserError(f"data.path={path} could not be loaded as a dataset ({_reason(error)})") from error
    return from_values(values, names, f"data.path={path}")


def _reason(error: BaseException) -> str:
    """An error and, where it only says that there was one, what it was."""
    words = f"{type(error).__name__}: {first_line(error)}"
    return words if error.__cause__ is None else f"{words}: {_reason(error.__cause__)}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Within: the library draws progress bars on a terminal only, and its errors are left to us to tell."""
    import datasets

    level, bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def _load(path: str, subset: str | None) -> Any:
    """A dataset, or several as a dictionary by split."""
    import datasets

    folder = Path(path).expanduser()
    if any((folder / name).is_file() for name in SAVED):
        return datasets.load_from_disk(str(folder))
    if folder.is_absolute() or path.startswith((".", "~")) or folder.is_dir():
        if not folder.is_dir():
            raise UserError(f"data.path={path}: there is no such folder")
        path = str(folder)
    return datasets.load_dataset(path, subset, **_as_text(path, subset))


def _as_text(path: str, subset: str | None) -> dict[str, Any]:
    """How CSV files are to be read: every cell as it stands. The library would make 7 of 007, and nothing of NA.

    Class labels, which a dataset's card may declare, stay labels.
    """
    import datasets

    builder = datasets.load_dataset_builder(path, subset)
    if builder.name != "csv":
        return {}
    parts = datasets.load_dataset(path, subset, streaming=True)
    columns: dict[str, Any] = next(iter(next(iter(parts.values()))), {})  # of the first row
    declared = builder.info.features or {}
    labels = {c: f for c, f in declared.items() if isinstance(f, datasets.ClassLabel)}
    text = {column: labels.get(column, datasets.Value("string")) for column in columns}
    return {"features": datasets.Features(text), "keep_default_na": False}


def _of_splits(found: Any, path: str, split: str) -> Any:
    """One of the dataset's own splits, or all of them one after the other."""
    import datasets

    if split == "all":
        return datasets.concatenate_datasets(list(found.values()))
    if split not in found:
        raise UserError(f"data.split_name={split}: {path} has the splits {', '.join(found)}; or give all")
    return found[split]


def _values(found: Any, column: str) -> Iterable:
    """A column's values: class labels by name."""
    names = getattr(found.features[column], "names", None)
    if names is None:
        return found[column]
    return (None if v is None or v < 0 else names[v] for v in found[column])
