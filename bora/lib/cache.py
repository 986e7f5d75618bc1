"""Keep downloads, dequantised models, large tables' columns and tokens between runs."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

from bora.errors import first_line
from bora.lib.files import atomic_write

log = logging.getLogger(__name__)


def cache_root() -> Path:
    """Return the cache folder: $BORA_CACHE, or ~/.cache/bora; without a home directory, bora in the temporary folder."""
    folder = os.path.expanduser(os.environ.get("BORA_CACHE", "~/.cache/bora"))
    return Path(tempfile.gettempdir(), "bora") if folder.startswith("~") else Path(folder)


def digest(about: object, texts: Iterable[str] = ()) -> str:
    """Hash plain values and texts, in order, into a key for `cached_table`: 32 hexadecimal digits."""
    found = hashlib.sha256(json.dumps(about).encode())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()[:32]


def cached_table(kind: str, key: str, make: Callable[[], pa.Table]) -> pa.Table:
    """Return the table that `make` returns, from the cache folder if it is there.

    The table is an Arrow file mapped into memory, so the processes of a sweep share it. An unreadable file is made again;
    if the cache folder is not writable, the table is made every time.

    Args:
        kind: folder within the cache.
        key: the `digest` of everything that the table depends on.
    """
    file = cache_root() / kind / f"{key}.arrow"
    if file.is_file():
        try:
            return _map_file(file)
        except (OSError, pa.ArrowException) as error:
            log.info("%s is damaged (%s); making it again", file, first_line(error))
    table = make()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as out, pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
    except OSError as error:
        log.info("%s cannot be written (%s); it will be made again next time", file, error)
        return table
    del table  # free it: the mapped file takes no memory of the process
    return _map_file(file)


def _map_file(file: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
