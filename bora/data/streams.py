"""Read a text file's lines, plain or compressed."""

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from bora.errors import UserError


def _open_zip(file: Path) -> IO[bytes]:
    archive = zipfile.ZipFile(file)
    names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]  # macOS's own notes
    if len(names) != 1:
        raise UserError(f"the archive holds {len(names)} files; it must hold one table")
    return archive.open(names[0])


OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda file: pa.CompressedInputStream(pa.OSFile(str(file)), "zstd"),
    ".zip": _open_zip,
}


def text_lines(file: Path) -> Iterator[str]:
    """Yield a file's lines, line ends unchanged; it must be UTF-8, with or without a byte order mark.

    Args:
        file: compressed if its ending is one of OPENERS.

    Raises:
        UserError: a line is not UTF-8, or a .zip holds no file or several.
    """
    binary = OPENERS.get(file.suffix.lower(), lambda file: file.open("rb"))(file)
    # The decoder reads ahead, so it lets bad bytes pass as lone surrogates, to find the line that has one here.
    with io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline="") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.encode()
            except UnicodeEncodeError as error:
                byte = ord(line[error.start]) - 0xDC00
                raise UserError(f"line {number} is not UTF-8 (byte 0x{byte:02x}); save it as UTF-8") from error
            yield line
