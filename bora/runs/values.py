"""Read and write the plain files of a run: YAML, JSON, tables, hashes, versions."""

import hashlib
import json
import math
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

import bora
from bora.errors import UserError, first_line
from bora.lib.files import require_regular_file, write_text_atomically

# Libraries whose version can change a number.
LIBRARIES = ("torch", "lightning", "transformers", "tokenizers", "hydra-core", "torchmetrics", "pandas", "wandb")


@contextmanager
def readable(file: Path) -> Iterator[Path]:
    """Turn errors of reading a run's file, inside the context, into a UserError."""
    try:
        yield require_regular_file(file)
    except (OSError, ValueError, KeyError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not readable: {first_line(error)}") from error


def read_yaml(file: Path) -> Any:
    """Read plain values from a file of YAML; see `readable`."""
    with readable(file):
        return yaml.safe_load(file.read_text("utf-8"))  # not the C loader, which crashes on deep nesting


def to_yaml(values: Any) -> str:
    """Write plain values as YAML."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; see `readable`."""
    with readable(file):
        found = json.loads(file.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is not a JSON object")
        return found


def write_csv(file: Path, table: pd.DataFrame) -> None:
    """Write a table, without its index, atomically."""
    write_text_atomically(file, table.to_csv(index=False))


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_text_atomically(file, to_json(value))


def to_json(value: dict[str, Any]) -> str:
    """Write a JSON object as text."""
    return json.dumps(json_safe(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def json_safe(value: Any) -> Any:
    """Convert infinite and undefined numbers, which strict JSON lacks, to strings, and NumPy's numbers to Python's."""
    if isinstance(value, dict):
        return {k: json_safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def with_floats(value: Any) -> Any:
    """Undo `json_safe`."""
    if isinstance(value, dict):
        return {k: with_floats(v) for k, v in value.items()}
    if isinstance(value, list):
        return [with_floats(v) for v in value]
    return float(value) if value in ("inf", "-inf", "nan") else value


def hash_file(file: Path) -> str:
    """Compute a file's SHA-256."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_text(text: str) -> str:
    """Hash a text: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """List the versions of Python, bora and the installed libraries; a run without W&B does not need wandb."""
    found = {"python": platform.python_version(), "bora": bora.__version__}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
