"""Talk of Norway: speeches of the Norwegian parliament, 1998 to 2016 (the paper's corpus).

Lapponi, Søyland, Velldal and Oepen (2018), "The Talk of Norway: a richly annotated corpus of the
Norwegian parliament, 1998–2016"; Norwegian Licence for Open Government Data.
"""

import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import pandas as pd
from huggingface_hub.file_download import http_get

from bora.data.csv_file import read_csv
from bora.data.streams import COMPRESSIONS
from bora.data.table import UNREADABLE
from bora.errors import UserError, first_line
from bora.lib.cache import cache_root
from bora.lib.files import whole

LARGEST = 2**33  # bytes of a ton.csv
MOST_UNPACKED = 2**37  # bytes of the archive up to it
# Members of an archive that tell the next one's name, or more of it, and how long they may be, bytes.
NAMES = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}
LONGEST_NAME = 2**20


def read(
    path: str | None, url: str, task: str = "rep_name", text: str = "text", date: str = "date"
) -> pd.DataFrame:
    """The speeches as columns `task` (speaker), `text`, `date`; the index counts the file's rows.

    What is missing there (a president's name), R wrote as NA: it is read as empty.

    Args:
        path: ton.csv, plain or compressed (.gz, .bz2, .xz, .zst, .zip), or a folder that holds it or data/ton.csv;
            None to use the downloaded one, fetching it on first use.
        url: the corpus archive (.tar.gz) that holds data/ton.csv.
        task, text, date: the columns.

    Raises:
        UserError: no such file, no network, or not the file that was expected.
    """
    file = _find(Path(path).expanduser()) if path is not None else download(url)
    try:
        return read_csv(file, ",", COMPRESSIONS.get(file.suffix.lower()), task, text, date, missing="NA")
    except UNREADABLE as error:
        raise UserError(f"data.path={file} is not a table like ton.csv: {first_line(error)}") from error


def _find(path: Path) -> Path:
    for candidate in (path, path / "ton.csv", path / "data" / "ton.csv"):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"data.path={path}: there is no ton.csv (looked for the file itself, ton.csv and data/ton.csv)"
    )


def download(url: str) -> Path:
    """Fetch the archive and take ton.csv out of it, once; an interrupted download goes on.

    Raises:
        UserError: the archive cannot be had, or holds no ton.csv.
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
            raise UserError(
                f"Talk of Norway could not be downloaded from {url} ({type(error).__name__}: "
                f"{first_line(error)}); run again to go on, or "
                "download it yourself and give data.path=/path/to/ton.csv"
            ) from error
        partial.replace(archive)
    _extract(archive, target)
    archive.unlink()
    return target


class _Header(tarfile.TarInfo):
    """A member's header. Those that only hold a longer name are read whole, so that their size is looked at first."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if header.type in NAMES and header.size > LONGEST_NAME:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


def _extract(archive: Path, target: Path) -> None:
    """Take the one file ton.csv out of the archive; the annotations beside it stay packed.

    No name in the archive decides where anything is written.

    Raises:
        UserError: it is no archive, or not the one that was expected: no ton.csv, or one that is a link, lies outside
            the archive's folder or is too large.
    """
    try:
        # A stream: the archive is read once, up to the file that is wanted.
        with tarfile.open(archive, "r|gz", tarinfo=_Header) as members:
            for member in members:
                if member.offset_data + member.size > MOST_UNPACKED:
                    raise _refused(archive, f"unpacks to more than {MOST_UNPACKED / 2**30:g} GiB")
                path = PurePosixPath(member.name)
                if path.name != "ton.csv" or member.isdir():
                    continue
                if path.is_absolute() or ".." in path.parts:
                    raise _refused(archive, f"has {member.name}, outside its own folder")
                if not member.isfile():
                    raise _refused(archive, "has a ton.csv that is a link or a device")
                if member.size > LARGEST:
                    raise _refused(archive, f"has a ton.csv of more than {LARGEST / 2**30:g} GiB")
                if (content := members.extractfile(member)) is not None:
                    with whole(target) as out:
                        shutil.copyfileobj(content, out)
                    return
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise UserError(
            f"{archive} is not a whole .tar.gz archive ({error}); delete it and run again"
        ) from error
    raise UserError(f"{archive} holds no ton.csv; delete it, or give data.path=/path/to/ton.csv")


def _refused(archive: Path, why: str) -> UserError:
    return UserError(f"{archive} {why}, so nothing is taken out of it; delete it, and see to data.url")
