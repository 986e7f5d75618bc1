"""Where downloads, dequantised models, large tables' columns and tokens are kept between runs."""

import contextlib
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

from bora.errors import first_line

log = logging.getLogger(__name__)


def cache_root() -> Path:
    """$BORA_CACHE, or ~/.cache/bora."""
    return Path(os.environ.get("BORA_CACHE", "~/.cache/bora")).expanduser()


def digest(about: object, texts: Iterable[str] = ()) -> str:
    """A key for `kept`: a hash of plain values and of texts, one after the other."""
    found = hashlib.sha256(json.dumps(about).encode())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()[:32]


_read_only: ContextVar[bool] = ContextVar("read_only", default=False)


@contextlib.contextmanager
def read_only() -> Iterator[None]:
    """Within: what the cache has is used, and nothing is written to it or removed from it."""
    before = _read_only.set(True)
    try:
        yield
    finally:
        _read_only.reset(before)


def is_read_only() -> bool:
    """Whether the cache must be left as it is."""
    return _read_only.get()


def kept(kind: str, key: str, make: Callable[[], pa.Table]) -> pa.Table:
    """The table that `make` gives; from the cache folder if it was made before.

    It is an Arrow file that is mapped into memory, so that the processes of a sweep share it; its checksum
    stands in its name. A file that is not what was written is made anew. A cache folder that cannot be written
    to costs time, nothing else.

    Args:
        kind: folder within the cache.
        key: from `digest`, of all that the table depends on.
    """
    folder = cache_root() / kind
    for file in folder.glob(f"{key}.*.arrow"):
        try:
            if file.name.split(".")[1] == _checksum(file):
                return _mapped(file)
            reason = "it was changed"
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = first_line(error)
        log.info("%s is not whole (%s): made anew", file, reason)
        if not is_read_only():
            _remove(file)
    table = make()
    if is_read_only():
        return table
    partial = folder / f"{key}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with pa.ipc.new_file(str(partial), table.schema) as writer:
            writer.write_table(table)
        file = partial.replace(folder / f"{key}.{_checksum(partial)}.arrow")
    except OSError as error:
        log.info("%s could not be written (%s): it will be made again next time", partial, error)
        _remove(partial)
        return table
    del table  # mapped, it needs no memory of its own
    return _mapped(file)


def _mapped(file: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def _checksum(file: Path) -> str:
    found = 0
    with file.open("rb") as stream:
        while part := stream.read(2**20):
            found = zlib.crc32(part, found)
    return f"{found:08x}"


def _remove(file: Path) -> None:
    """Delete a file of the cache, if it is there and may be deleted."""
    with contextlib.suppress(OSError):
        file.unlink()
