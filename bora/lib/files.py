"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bora.errors import UserError

PARTIAL = ".partial"  # how the name of a file ends that is being written


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Within: a file to write to. After: it is at `path`, on the disk; unless an error came out, then nothing is changed.

    A reader never sees half of it, and a power cut leaves the old file or the new one.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the renaming itself
        finally:
            os.close(folder)
    finally:
        partial.unlink(missing_ok=True)


def ordinary(path: Path) -> Path:
    """The path, unless a pipe or a device is there, which could be waited for forever.

    Raises:
        OSError: there is.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError("it is no ordinary file")
    return path


def output_folder(out: Path) -> None:
    """Make the folder that a command writes to.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{out}: nothing can be written there ({error.strerror}); give another folder"
        ) from error
    if not os.access(out, os.W_OK):
        raise UserError(f"{out}: nothing can be written there; give another folder")


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole(path) as out:
        out.write(text.encode("utf-8"))
