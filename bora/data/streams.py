"""A file's bytes and its lines, plain or compressed."""

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from bora.errors import UserError


def _open_zst(file: Path) -> Any:
    return pa.CompressedInputStream(pa.OSFile(str(file)), "zstd")


def _open_zip(file: Path) -> IO[bytes]:
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    if len(names) != 1:
        raise UserError(f"the archive holds {len(names)} files; it must hold one table")
    return archive.open(names[0])


OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zst,
    ".zip": _open_zip,
}


@contextmanager
def text_lines(file: Path) -> Iterator[io.TextIOWrapper]:
    """Open a file's lines as they are; it must be UTF-8, with or without a byte order mark.

    Args:
        file: compressed if it ends as one of OPENERS.

    Raises:
        UserError: it is not UTF-8, or a .zip of no or several files.
    """
    try:
        with io.TextIOWrapper(_open(file), "utf-8-sig", newline="") as lines:
            yield lines
    except UnicodeDecodeError as error:
        raise UserError(f"{_find_bad_byte(file)}; save it as UTF-8") from error


def _open(file: Path) -> Any:
    """Open a file's bytes, decompressed."""
    return OPENERS.get(file.suffix.lower(), lambda file: file.open("rb"))(file)


def _find_bad_byte(file: Path) -> str:
    """Describe where a file is not UTF-8."""
    with io.BufferedReader(_open(file)) as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                return "it is UTF-16 or UTF-32"
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"line {number} is not UTF-8 (byte 0x{line[error.start]:02x})"
    return "it is not UTF-8"
