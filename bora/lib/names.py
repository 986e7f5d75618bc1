"""Task names: one spelling for each within, and made safe for the outside: file systems, metric names of trackers."""

import logging
import re
import unicodedata
from collections.abc import Iterable

import pandas as pd

from bora.errors import UserError

log = logging.getLogger(__name__)

LONGEST = 64  # characters; some file systems stop at 143 bytes, and the whole path counts on Windows
# Windows reads these as devices, whatever follows a dot.
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
# Letters that Unicode does not take apart into a plain one and its mark.
LETTERS = str.maketrans(
    {
        "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "œ": "oe", "Œ": "OE", "ß": "ss", "ð": "d", "Ð": "D",
        "þ": "th", "Þ": "Th", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ı": "i",
    }
)  # fmt: skip


def one_spelling(tasks: pd.Series, source: str) -> pd.Series:
    """Each name in Unicode's composed form (NFC), its white space as single spaces, none around it.

    Names that differ in these alone are one text to Unicode and to a reader, so they name one task; where there are
    such, that is told. Capital letters stay as they are: see `look_alikes`.

    Args:
        tasks: a name a row; its index counts rows.
        source: where they are from, for messages.

    Raises:
        UserError: a name holds another control character.
    """
    names = {raw: " ".join(unicodedata.normalize("NFC", raw).split()) for raw in tasks.unique()}
    spellings: dict[str, list[str]] = {}
    for raw, name in names.items():
        if has_control(name):
            row = tasks.index[tasks == raw][0]
            raise UserError(
                f"{source}: the task's name {name[:LONGEST]!r} in row {row} (counted from 0) holds a control "
                "character; take it out"
            )
        spellings.setdefault(name, []).append(raw)
    merged = [raws for name, raws in spellings.items() if name and len(raws) > 1]
    if merged:
        log.warning(
            "%d task(s) are spelled in more than one way, of which each is taken as one task; the ways differ in "
            "white space, or in how Unicode writes a letter: %s",
            len(merged), " and ".join(ascii(raw) for raw in merged[0][:2]),
        )  # fmt: skip
    return tasks.map(names)


def has_control(name: str) -> bool:
    """Whether a character is none but a command, white space apart."""
    return any(unicodedata.category(letter) == "Cc" and not letter.isspace() for letter in name)


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that a person may take for the same: but for capital letters, or invisible or like characters."""
    groups: dict[str, list[str]] = {}
    for name in names:
        seen = (c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        groups.setdefault("".join(seen).casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def safe_names(tasks: Iterable[str], reserved: Iterable[str] = ()) -> dict[str, str]:
    """A name for each task of ASCII letters, digits, dots, hyphens and underscores, that any file system takes.

    No two are equal where capital letters do not count, and none is `reserved`. It depends on all the tasks and
    their order, so a task alone gets the name that it has among all.
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
    marked = unicodedata.normalize("NFKD", task.translate(LETTERS))
    letters = "".join(c for c in marked if not unicodedata.combining(c))
    # A name must not be hidden, be an option to a command, or lead out of its folder.
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", letters).strip("-._")[:LONGEST].rstrip("-._")
    if not name:
        return "task"
    return f"task-{name}" if name.split(".")[0].lower() in DEVICES else name
