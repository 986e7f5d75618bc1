"""Give each task name one spelling, and warn of names that look alike."""

import logging
import unicodedata
from collections.abc import Iterable

import pandas as pd

from bora.errors import UserError

log = logging.getLogger(__name__)

MAX_SHOWN_CHARS = 64  # for a name in an error message


def normalise_names(tasks: pd.Series) -> pd.Series:
    """Write each name in Unicode's composed form (NFC), with single spaces and none at its ends.

    Names that differ only in these are the same text to Unicode and to a person, so they name one task; merged spellings
    are reported. Capital letters are unchanged: see `look_alikes`.

    Args:
        tasks: one name for each row; its index counts rows.

    Raises:
        UserError: a name holds a control character other than white space.
    """
    names = {raw: " ".join(unicodedata.normalize("NFC", raw).split()) for raw in tasks.unique()}
    spellings: dict[str, list[str]] = {}
    for raw, name in names.items():
        if any(unicodedata.category(letter) == "Cc" and not letter.isspace() for letter in name):
            row = tasks.index[tasks == raw][0]
            raise UserError(
                f"the name {name[:MAX_SHOWN_CHARS]!r} in row {row} (counted from 0) contains a control "
                "character; remove it"
            )
        spellings.setdefault(name, []).append(raw)
    merged = [raws for name, raws in spellings.items() if name and len(raws) > 1]
    if merged:
        log.warning(
            "%d name(s) are spelled in more than one way, in white space or in Unicode's forms of a letter; each is "
            "read as one: %s",
            len(merged),
            " and ".join(ascii(raw) for raw in merged[0][:2]),
        )
    return tasks.map(names)


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Group names that a person may take for the same: they differ in capitals, or invisible or similar characters."""
    groups: dict[str, list[str]] = {}
    for name in names:
        seen = (c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        groups.setdefault("".join(seen).casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def warn_of_look_alikes(names: Iterable[str]) -> None:
    """Warn of different tasks that may be meant as one."""
    alike = look_alikes(names)
    if alike:
        log.warning(
            "task names that differ only in capital letters, similar characters or invisible ones stay different tasks: "
            "%s%s; if one task is meant, correct the table",
            " and ".join(map(ascii, alike[0])),
            f", and {len(alike) - 1} more such groups" * (len(alike) > 1),
        )
