"""Read Talk of Norway: speeches of the Norwegian parliament, 1998 to 2016 (the paper's corpus).

Lapponi, Søyland, Velldal and Oepen (2018), "The Talk of Norway: a richly annotated corpus of the
Norwegian parliament, 1998–2016"; Norwegian Licence for Open Government Data.
"""

import shutil
import tarfile
import zlib
from pathlib import Path

import pandas as pd
from filelock import FileLock
from huggingface_hub.file_download import http_get

from bora.data.columns import Columns
from bora.data.csv_file import read_csv
from bora.errors import UserError, first_line
from bora.lib.cache import cache_root
from bora.lib.files import atomic_write


def read(path: str | None, url: str, columns: Columns) -> pd.DataFrame:
    """Read the speeches, see `bora.data.columns.finish`.

    R wrote missing values (a president's name) as NA: they are read as ''.

    Args:
        path: ton.csv, plain or compressed (.gz, .bz2, .xz, .zst, .zip), or a folder that holds it or data/ton.csv;
            None to use the downloaded one, fetching it on first use.
        url: the corpus archive (.tar.gz) that contains data/ton.csv.

    Raises:
        UserError: the archive cannot be downloaded or unpacked; or there is no such file, or it is not CSV.
    """
    if path is None:
        return read_csv(download(url), columns, missing="NA")
    folder = Path(path).expanduser()
    for file in (folder, folder / "ton.csv", folder / "data" / "ton.csv"):
        if file.is_file():
            return read_csv(file, columns, missing="NA")
    raise UserError("there is no ton.csv (looked for the file itself, ton.csv and data/ton.csv)")


def download(url: str) -> Path:
    """Download the archive and extract ton.csv, once; resume an interrupted download."""
    folder = cache_root() / "talk_of_norway"
    target = folder / "ton.csv"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not target.is_file():  # another process may have been faster
            _fetch(url, folder / "archive.tar.gz", target)
    return target


def _fetch(url: str, archive: Path, target: Path) -> None:
    partial = archive.with_name("archive.tar.gz.partial")
    if not archive.is_file():
        try:
            with partial.open("ab") as out:
                http_get(url, out, resume_size=out.tell(), displayed_filename="Talk of Norway")
        except Exception as error:  # whatever the HTTP client raises, the advice is the same
            raise UserError(
                f"Talk of Norway could not be downloaded from {url} ({type(error).__name__}: "
                f"{first_line(error)}); run again to resume, or "
                "download it another way and give data.path=/path/to/ton.csv"
            ) from error
        partial.replace(archive)
    _extract(archive, target)
    archive.unlink()


def _extract(archive: Path, target: Path) -> None:
    """Extract ton.csv from the archive to `target`; no name in the archive decides where anything is written."""
    try:
        # As a stream, the archive is read once, up to the wanted file.
        with tarfile.open(archive, "r|gz") as members:
            for member in members:
                content = members.extractfile(member) if member.isreg() else None
                if content is not None and Path(member.name).name == "ton.csv":
                    with atomic_write(target) as out:
                        shutil.copyfileobj(content, out)
                    return
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(f"{archive} is not a complete .tar.gz archive ({error}); delete it and run again") from error
    raise UserError(f"{archive} holds no ton.csv; delete it, or give data.path=/path/to/ton.csv")
