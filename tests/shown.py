"""Find what a Markdown page tells its reader to type, and check that it can be typed."""

import re
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

from bora.commands.overrides import overrides_in
from bora.config.compose import compose_config
from bora.config.schema import Config

REPOSITORY = Path(__file__).parent.parent


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page: str) -> list[str]:
    """Return every line of the shell blocks, continued lines joined, and each `bora …` in running text and tables."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`(bora (?:run|report|generate|evaluate|adapt|export|doctor) [^`\n]+)`", page)
    return [line.split("  #")[0].strip() for line in [*lines, *inline]]


def options(page: str) -> list[str]:
    """Return every override in running text and tables as it is typed; `a=b|c` is two."""
    shown = [
        c
        for c in re.findall(r"`([^`\n]+=[^`\n]+)`", page)
        if not re.search(r"NAME_OR|multirun|…|/path/|\.ckpt|RUN|^bora\b|^pip |\(", c)
    ]
    found = []
    for code in shown:
        quoted, alternatives = "'" in code or '"' in code, code.replace("\\|", "|")
        for words in alternatives.split(" ") if "|" in code and not quoted else [code]:
            key, _, values = words.partition("=")
            found += [f"{key}={v}" for v in values.split("|")] if "|" in values else [words]
    return [f for f in found if "=" in f]


def as_typed(words: str) -> list[str]:
    """Return the words that a shell passes to the command."""
    done = subprocess.run(f"printf '%s\\n' {words}", shell=True, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def composed(overrides: Iterable[str]) -> Config:
    """Compose a command's config; a sweep's is that of its first job."""
    words = overrides_in(list(overrides))
    if {"data=table", "data=datasets"} & set(words) and not any(w.startswith("data.path=") for w in words):
        words.append("data.path=x.csv")
    return compose_config(words)[0]


def overrides(command: str) -> list[str]:
    """Return the words of a command that set something."""
    return [word for word in shlex.split(command) if "=" in word]


def makes(page: str) -> list[str]:
    """Return the target of every `make …`."""
    return [c.split()[1] for c in commands(page) if c.startswith("make ")] + re.findall(r"`make (\S+)`", page)


def is_target(name: str) -> bool:
    """Return whether the Makefile has this target."""
    return f"\n{name}:" in (REPOSITORY / "Makefile").read_text("utf-8")
