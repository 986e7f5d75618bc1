"""Where downloads, dequantised models, slim tables and tokens are kept between runs."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

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


def kept(kind: str, key: str, make: Callable[[], pa.Table]) -> pa.Table:
    """The table that `make` gives; from the cache folder if it was made before.

    A file that cannot be read, or whose pages do not have their checksums, is made anew. A cache folder that
    cannot be written to costs time, nothing else.

    Args:
        kind: folder within the cache.
        key: from `digest`, of all that the table depends on.
    """
    file = cache_root() / kind / f"{key}.parquet"
    if file.is_file():
        try:
            return pq.read_table(file, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            log.info("%s is not whole (%s): made anew", file, str(error).splitlines()[0])
    table = make()
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
        partial.replace(file)
    except OSError as error:
        log.info("%s could not be written (%s): it will be made again next time", file, error)
        if partial.exists():
            partial.unlink()
    return table
