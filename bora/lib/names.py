"""Task names: one spelling inside bora, and safe names for file systems and for trackers' metrics."""

import logging
import re
import unicodedata
from collections.abc import Iterable

import pandas as pd

from bora.errors import UserError

log = logging.getLogger(__name__)

MAX_NAME_CHARS = 64  # some file systems stop at 143 bytes
# Letters that Unicode does not decompose into a plain one and its mark, and their plain spelling.
_LETTERS = str.maketrans(
    dict(zip("øØðÐłŁđĐı", "oOdDlLdDi", strict=True))
    | {"æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ß": "ss", "þ": "th", "Þ": "Th"}
)


def normalise_names(tasks: pd.Series) -> pd.Series:
    """Write each name in Unicode's composed form (NFC), with single spaces and none at its ends.

    Names that differ in these alone are one text to Unicode and to a person, so they name one task; merged spellings
    are reported. Capital letters stay as they are: see `look_alikes`.

    Args:
        tasks: a name a row; its index counts rows.

    Raises:
        UserError: a name holds a control character other than white space.
    """
    names = {raw: " ".join(unicodedata.normalize("NFC", raw).split()) for raw in tasks.unique()}
    spellings: dict[str, list[str]] = {}
    for raw, name in names.items():
        if has_control(name):
            row = tasks.index[tasks == raw][0]
            raise UserError(
                f"the task's name {name[:MAX_NAME_CHARS]!r} in row {row} (counted from 0) holds a control "
                "character; remove it"
            )
        spellings.setdefault(name, []).append(raw)
    merged = [raws for name, raws in spellings.items() if name and len(raws) > 1]
    if merged:
        log.warning(
            "%d task(s) are spelled in more than one way, in white space or in Unicode's forms of a letter; each is "
            "taken as one task: %s",
            len(merged),
            " and ".join(ascii(raw) for raw in merged[0][:2]),
        )
    return tasks.map(names)


def has_control(name: str) -> bool:
    """Return whether a name holds a control character, white space apart."""
    return any(unicodedata.category(letter) == "Cc" and not letter.isspace() for letter in name)


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Group names that a person may take for the same: they differ in capitals, or in invisible or like characters."""
    groups: dict[str, list[str]] = {}
    for name in names:
        seen = (c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        groups.setdefault("".join(seen).casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def warn_of_look_alikes(names: Iterable[str]) -> None:
    """Warn where tasks that stay apart may be meant as one."""
    alike = look_alikes(names)
    if alike:
        log.warning(
            "task names that differ only in capital letters, like characters or invisible ones stay different tasks: "
            "%s%s; if one task is meant, correct the table",
            " and ".join(map(ascii, alike[0])),
            f", and {len(alike) - 1} more such groups" * (len(alike) > 1),
        )


def safe_names(tasks: Iterable[str], reserved: Iterable[str] = ()) -> dict[str, str]:
    """Give each task a name of ASCII letters, digits, dots, hyphens and underscores, safe as a file's name.

    No two are equal where capital letters do not count, and none is `reserved`. A name depends on all the tasks and
    their order, so give all of them even where one is needed.
    """
    taken = {name.lower() for name in reserved}
    names = {}
    for task in tasks:
        plain = name = _plain(task)
        count = 1
        while name.lower() in taken:
            count += 1
            name = f"{plain}-{count}"
        taken.add(name.lower())
        names[task] = name
    return names


def _plain(task: str) -> str:
    """Spell a name in safe characters; "task" where none is left."""
    marked = unicodedata.normalize("NFKD", task.translate(_LETTERS))
    letters = "".join(c for c in marked if not unicodedata.combining(c))
    # A name must not be hidden, be an option to a command, or lead out of its folder.
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", letters).strip("-._")[:MAX_NAME_CHARS].rstrip("-._")
    return name or "task"
