"""Keep downloads, dequantised models, large tables' columns and tokens between runs."""

import contextlib
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

from bora.errors import first_line
from bora.lib.files import PARTIAL

log = logging.getLogger(__name__)


def cache_root() -> Path:
    """Return the cache folder: $BORA_CACHE, or ~/.cache/bora."""
    return Path(os.environ.get("BORA_CACHE", "~/.cache/bora")).expanduser()


def digest(about: object, texts: Iterable[str] = ()) -> str:
    """Hash plain values and texts, in order, to a key for `cached_table`: 32 hexadecimal digits."""
    found = hashlib.sha256(json.dumps(about).encode())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()[:32]


def cached_table(kind: str, key: str, make: Callable[[], pa.Table]) -> pa.Table:
    """Return the table that `make` gives, from the cache folder where it was made before.

    The cached table is an Arrow file mapped into memory, so the processes of a sweep share it. Its name holds its
    checksum; a file that does not match is made again. Where the cache folder is not writable, the table is made
    each time.

    Args:
        kind: folder within the cache.
        key: from `digest`, of everything that the table depends on.
    """
    folder = cache_root() / kind
    for file in folder.glob(f"{key}.*.arrow"):
        try:
            if file.name.split(".")[1] == _checksum(file):
                return _map_file(file)
            reason = "its checksum does not match"
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = first_line(error)
        log.info("%s is damaged (%s): made again", file, reason)
        _remove(file)
    table = make()
    partial = folder / f"{key}.{os.getpid()}{PARTIAL}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with pa.ipc.new_file(str(partial), table.schema) as writer:
            writer.write_table(table)
        file = partial.replace(folder / f"{key}.{_checksum(partial)}.arrow")
    except OSError as error:
        log.info("%s could not be written (%s): made again next time", partial, error)
        _remove(partial)
        return table
    del table  # the mapped file needs no memory of its own
    return _map_file(file)


def _map_file(file: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def _checksum(file: Path) -> str:
    found = 0
    with file.open("rb") as stream:
        while part := stream.read(2**20):
            found = zlib.crc32(part, found)
    return f"{found:08x}"


def _remove(file: Path) -> None:
    """Delete a file of the cache, if it exists and may be deleted."""
    with contextlib.suppress(OSError):
        file.unlink()
