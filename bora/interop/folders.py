"""What a folder made by `bora export` looks like: its files, and folder names that every file system takes."""

import re
import unicodedata
from collections.abc import Iterable

MAPPING = "tasks.json"  # {"mean": its folder or null, "tasks": {folder: the task's name}}
MEAN = "hierarchical-mean"
CARD = "README.md"
# PEFT's own names, in an adapter's folder and in its file of tensors.
ADAPTER_CONFIG, ADAPTER_TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

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


def folder_names(tasks: Iterable[str]) -> dict[str, str]:
    """A folder name for each task: ASCII letters, digits, dots, hyphens and underscores.

    No two are equal where capital letters do not count, and none is a file's or the hierarchical mean's. It
    depends on all the tasks and their order, so a task alone gets the name that it has among all.
    """
    taken = {MEAN, MAPPING}
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
