"""Write files and folders atomically."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from bora.errors import UserError, first_line

PARTIAL = ".partial"  # the ending of a file that is still being written


def user_path(text: str) -> Path:
    """Expand the ~ of a path from the command line, since the shell does not in --out=~/…."""
    return Path(text).expanduser()


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write a file atomically: it appears at `path` complete and fsynced, or not at all.

    A file that is already there is unchanged until then, so a reader sees either the old one or the new one.
    """
    # A run's processes may be on several machines that share a disk, and have equal process IDs in containers.
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the new name durable
        finally:
            os.close(folder)
    finally:
        partial.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_write(path) as out:
        out.write(text.encode("utf-8"))


def remove_folder(folder: Path) -> None:
    """Remove a folder, and those of its parents below the working directory that are then empty."""
    here = Path.cwd()  # now, since it may be removed too
    shutil.rmtree(folder)
    for parent in folder.absolute().parents:
        if not (parent.is_relative_to(here) and parent != here) or any(parent.iterdir()):
            break
        parent.rmdir()


@contextmanager
def write_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder that is renamed to `out` at the end, so that `out` appears complete or not at all.

    Raises:
        UserError: `out` exists and is not an empty folder, or cannot be written.
    """
    out = out.expanduser().resolve()
    partial = out.with_name(f".bora.{os.getpid()}{PARTIAL}")
    try:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"{out} is {'not empty' if out.is_dir() else 'a file'}; give an empty folder or a new one")
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({first_line(error)}); give another folder") from error
    try:
        yield partial
        for file in partial.rglob("*"):  # safetensors makes its files readable only for their owner
            file.chmod(file.stat().st_mode | (partial.stat().st_mode & 0o044))
        if out.exists():
            out.rmdir()  # fails if it is no longer empty
        partial.rename(out)
    except SafetensorError as error:  # raised by safetensors instead of an OSError
        raise UserError(f"{out} cannot be written: {first_line(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replace_files(out: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield a new folder for files with these names, which at the end replace those in `out`, the last name last."""
    with tempfile.TemporaryDirectory(prefix=".bora.", dir=out) as folder:
        new = Path(folder)
        yield new
        for name in reversed(names):
            (out / name).unlink(missing_ok=True)
        for name in names:
            if (new / name).exists():
                (new / name).replace(out / name)


def require_regular_file(path: Path) -> Path:
    """Return the path; raise an OSError if it is a pipe or a device, since reading from one may never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError("it is not a regular file")
    return path


def make_output_folder(out: Path) -> None:
    """Make the folder that a command writes to; raise a UserError if it cannot be made or is not writable."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); give another folder") from error
    if not os.access(out, os.W_OK):
        raise UserError(f"{out} cannot be written; give another folder")
