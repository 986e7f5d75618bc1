"""Task names made safe for the outside: file systems, and the metric names of trackers."""

import re
import unicodedata
from collections.abc import Iterable

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
