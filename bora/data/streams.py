"""A file's bytes and its lines, whatever it is packed with."""

import codecs
import io
import lzma
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from bora.errors import UserError

CHUNK = 2**16  # bytes
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zip": "zip"}


def open_stream(file: Path, compression: str | None) -> IO[bytes]:
    """The file's bytes, decompressed.

    Raises:
        UserError: a .zip that does not hold exactly one file.
    """
    if compression is None:
        return file.open("rb")
    if compression == "xz":  # Arrow has no codec for it
        return io.BufferedReader(Xz(file))
    if compression == "zip":
        archive = zipfile.ZipFile(file)
        if len(archive.namelist()) != 1:
            raise UserError(f"data.path={file} holds {len(archive.namelist())} files; it must hold one table")
        return archive.open(archive.namelist()[0])
    return pa.CompressedInputStream(pa.OSFile(str(file)), compression)


class Xz(io.RawIOBase):
    """An .xz file's bytes, of all its streams.

    Python's own LZMAFile takes a second stream that is damaged, or anything else behind the first, for the file's end.
    """

    def __init__(self, file: Path):
        self._file = file.open("rb")
        self._decoder = lzma.LZMADecompressor()
        self._between = False  # two streams, where padding may be

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """
        Raises:
            LZMAError: it is damaged, or holds something else.
            EOFError: it ends within a stream.
        """
        while True:
            packed = b""
            if self._decoder.eof:
                packed, self._between = self._decoder.unused_data, True
                self._decoder = lzma.LZMADecompressor()
            if self._decoder.needs_input and not packed:
                packed = self._file.read(CHUNK)
                if not packed:
                    if self._between:
                        return 0
                    raise EOFError("it ends in the middle of its data")
            if self._between:
                packed = packed.lstrip(b"\0")
                self._between = not packed
                if not packed:
                    continue
            data = self._decoder.decompress(packed, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)


@contextmanager
def text_lines(file: Path, compression: str | None) -> Iterator[io.TextIOWrapper]:
    """The file's lines as they are; it must be UTF-8, with or without a byte order mark.

    Raises:
        UserError: it is not.
    """
    try:
        with io.TextIOWrapper(open_stream(file, compression), "utf-8-sig", newline="") as lines:
            yield lines
    except (UserError, UnicodeDecodeError) as error:
        if compression is not None:
            _read_on(file, compression)
        if isinstance(error, UserError):
            raise
        raise UserError(f"data.path={file} {_encoding(file, compression)}; save it as UTF-8") from error


def _read_on(file: Path, compression: str) -> None:
    """Read to the end, where a packed file's own checksum is: if it is damaged, that is what is wrong with its text."""
    with open_stream(file, compression) as stream:
        while stream.read(CHUNK):
            pass


def _encoding(file: Path, compression: str | None) -> str:
    """What a file is that is not UTF-8, and where that shows."""
    # As Latin-1 a byte is a character, and no two lines are one.
    with io.TextIOWrapper(open_stream(file, compression), "latin-1", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            data = line.encode("latin-1")
            if number == 1 and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                return "is not readable: it is UTF-16 or UTF-32"
            try:
                data.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"is not readable as UTF-8 (line {number}: byte 0x{data[error.start]:02x})"
    return "is not readable as UTF-8"
