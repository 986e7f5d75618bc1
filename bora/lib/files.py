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
    """Take a path from the command line: the shell leaves the ~ of --out=~/… to us."""
    return Path(text).expanduser()


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write a file atomically: it appears at `path` complete and fsynced, or not at all.

    Where a file was at `path`, it stays as it was until then: a reader sees the old one or the new one.
    """
    # A run's processes may be on several machines, with one disk, and in containers the same number.
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name itself
        finally:
            os.close(folder)
    finally:
        partial.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, complete or not at all."""
    with atomic_write(path) as out:
        out.write(text.encode("utf-8"))


def remove_folder(folder: Path) -> None:
    """Remove a folder, and the parents below the working directory that it leaves empty."""
    here = Path.cwd()  # which may go too
    shutil.rmtree(folder)
    for parent in folder.absolute().parents:
        if not (parent.is_relative_to(here) and parent != here) or any(parent.iterdir()):
            break
        parent.rmdir()


@contextmanager
def write_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out` that takes its name at the end: `out` appears complete, or not at all.

    Refuse, by a UserError, an `out` that holds something already, or where nothing can be written.
    """
    out = out.expanduser().resolve()
    partial = out.with_name(f".bora.{os.getpid()}{PARTIAL}")
    try:
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(f"{out} is {'not empty' if out.is_dir() else 'a file'}; give an empty folder or a new one")
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out}: nothing can be written there ({first_line(error)}); give another folder") from error
    try:
        yield partial
        for file in partial.rglob("*"):  # safetensors lets nobody but the owner read what it writes
            file.chmod(file.stat().st_mode | (partial.stat().st_mode & 0o044))
        if out.exists():
            out.rmdir()  # fails if it is no longer empty
        partial.rename(out)
    except SafetensorError as error:  # what it raises where others raise OSError
        raise UserError(f"{out} cannot be written: {first_line(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replace_files(out: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield a new folder for files of these names, which at the end replace those in `out`; the last name comes last."""
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
    """Make the folder that a command writes to; raise a UserError if it cannot be made, or is not writable."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: nothing can be written there ({error.strerror}); give another folder") from error
    if not os.access(out, os.W_OK):
        raise UserError(f"{out}: nothing can be written there; give another folder")
