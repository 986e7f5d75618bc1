"""Talk of Norway: speeches of the Norwegian parliament, 1998 to 2016 (the paper's corpus).

Lapponi, Søyland, Velldal and Oepen (2018), "The Talk of Norway: a richly annotated corpus of the
Norwegian parliament, 1998–2016"; Norwegian Licence for Open Government Data.
"""

import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.file_download import http_get

from bora.cache import cache_root
from bora.data.table import csv_batches
from bora.errors import InputError

log = logging.getLogger(__name__)

SCHEMA = pa.schema([("task", pa.large_string()), ("text", pa.large_string()), ("date", pa.large_string())])


def read(
    path: str | None, url: str, task: str = "rep_name", text: str = "text", date: str = "date"
) -> pd.DataFrame:
    """The speeches as columns `task` (speaker), `text`, `date`; the index counts the file's rows.

    Of a full-size file (over 1 GB, about 90 columns) only these columns are read, a part at a time,
    and kept as a Parquet file in the cache folder for the next start.

    Args:
        path: ton.csv, or a folder that holds it or data/ton.csv; None to use the downloaded one,
            fetching it on first use.
        url: the corpus archive (.tar.gz) that holds data/ton.csv.
        task, text, date: the columns.

    Raises:
        InputError: no such file, no network, or not the file that was expected.
    """
    file = _find(Path(path).expanduser()) if path is not None else download(url)
    stat = file.stat()
    identity = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{task}:{text}:{date}"
    slim = cache_root() / f"ton-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.parquet"
    if not slim.is_file():
        _write_slim(file, slim, task, text, date)
    table = pq.read_table(slim).to_pandas()
    # The corpus was written by R: what is missing (a president's name) may stand as NA.
    return table.mask(table == "NA", "")


def _find(path: Path) -> Path:
    for candidate in (path, path / "ton.csv", path / "data" / "ton.csv"):
        if candidate.is_file():
            return candidate
    raise InputError(
        f"data.path={path}: there is no ton.csv (looked for the file itself, ton.csv and data/ton.csv)"
    )


def _write_slim(file: Path, slim: Path, task: str, text: str, date: str) -> None:
    """Copy the needed columns of the CSV into a Parquet file, complete or not at all."""
    log.info("reading %s once; its needed columns are kept in %s", file, slim)
    slim.parent.mkdir(parents=True, exist_ok=True)
    partial = slim.with_name(f"{slim.name}.{os.getpid()}.partial")
    try:
        names, batches = csv_batches(file, ",", None, task, text, date)
        with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
            for batch in batches:
                columns = [batch.column(c) for c in names]
                writer.write_table(pa.Table.from_arrays(columns, list(names.values())).select(SCHEMA.names))
        partial.replace(slim)
    except ValueError as error:
        raise InputError(
            f"data.path={file} is not a table like ton.csv: {str(error).splitlines()[0]}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def download(url: str) -> Path:
    """Fetch the archive and take ton.csv out of it, once; an interrupted download goes on.

    Raises:
        InputError: the archive cannot be had, or holds no ton.csv.
    """
    folder = cache_root() / "talk_of_norway"
    target = folder / "ton.csv"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    archive, partial = folder / "archive.tar.gz", folder / "archive.tar.gz.partial"
    if not archive.is_file():
        try:
            with partial.open("ab") as out:
                http_get(url, out, resume_size=out.tell(), displayed_filename="Talk of Norway")
        except Exception as error:  # whatever the HTTP client raises, the user can do the same about it
            raise InputError(
                f"Talk of Norway could not be downloaded from {url} ({type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else 'no reason given'}); run again to go on, or "
                "download it yourself and give data.path=/path/to/ton.csv"
            ) from error
        partial.replace(archive)
    _extract(archive, target)
    archive.unlink()
    return target


def _extract(archive: Path, target: Path) -> None:
    """Take the one file ton.csv out of the archive; the annotations beside it stay packed."""
    try:
        # A stream: the archive is read once, up to the file that is wanted.
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                if member.isfile() and Path(member.name).name == "ton.csv":
                    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as out:
                        shutil.copyfileobj(members.extractfile(member), out)
                    Path(out.name).replace(target)
                    return
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(
            f"{archive} is not a whole .tar.gz archive ({error}); delete it and run again"
        ) from error
    raise InputError(f"{archive} holds no ton.csv; delete it, or give data.path=/path/to/ton.csv")
