"""Write a folder atomically."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from bora.errors import UserError, first_line


@contextmanager
def write_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out` that takes its name at the end: `out` appears complete, or not at all.

    Raises:
        UserError: something is at `out` already, or nothing can be written there.
    """
    out = out.expanduser().resolve()
    partial = out.with_name(f".bora.{os.getpid()}.partial")
    try:
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file; give an empty folder or a new one")
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out} is not empty; give an empty folder or a new one")
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out}: nothing can be written there ({first_line(error)}); give another folder") from error
    try:
        yield partial
        if out.exists():
            out.rmdir()  # fails if it is no longer empty
        partial.rename(out)
    except SafetensorError as error:  # what it raises where others raise OSError
        raise UserError(f"{out} cannot be written: {first_line(error)}") from error
    finally:
        if partial.exists():
            shutil.rmtree(partial)
