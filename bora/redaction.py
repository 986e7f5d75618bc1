"""Secrets kept out of what is written and printed: passwords in URLs, keys of the environment and of the config."""

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from bora.files import write_whole

# Stands where a secret stood. Plain letters: it must be a value to YAML, to Hydra's command line and in a URL alike.
MARK = "__redacted__"
# The last word of a key or of an environment variable that holds a secret. Not "tokens", which are counted here.
SECRET = r"(?:api_?key|access_?key|secret|secret_?key|token|password|passwd)"
# Characters of a secret that is looked for by itself: a shorter one would be found where it is none.
SHORTEST = 8

_PASSWORD = re.compile(r"(?<=://)([^/?#\s:@]*):[^/?#\s]*@")  # user:password@host
_BARE_TOKEN = re.compile(r"(?<=http://|ttps://)[^/?#\s:@]+@")  # token@host
_QUERY = re.compile(rf"([?&][\w.-]*{SECRET}=)[^&#\s'\"]+", re.IGNORECASE)
# `key=value` on a command line, `key: value` on a line of YAML.
_OVERRIDE = re.compile(
    rf"((?:^|[\s'\",\[])[+~]*[\w./@-]*{SECRET}=)(?:'[^']*'|\"[^\"]*\"|[^\s'\",\]]+)", re.IGNORECASE
)
_YAML = re.compile(rf"^([ -]*[\w-]*{SECRET}: )(?!null$).+$", re.IGNORECASE | re.MULTILINE)
_KEY = re.compile(rf"(?:^|.*[_.+~-]){SECRET}$", re.IGNORECASE)

T = TypeVar("T")


def redacted(value: T) -> T:
    """The same with MARK in the place of secrets: in texts; in lists; in dictionaries, whose keys tell of some, too.

    A text that holds no secret stays as it is, and a second time nothing changes.
    """
    found: Any = value
    if isinstance(value, str):
        found = _QUERY.sub(rf"\1{MARK}", _BARE_TOKEN.sub(f"{MARK}@", _PASSWORD.sub(rf"\1:{MARK}@", value)))
        for secret in _known():
            found = found.replace(secret, MARK)
    elif isinstance(value, Mapping):
        found = {
            key: MARK if isinstance(child, (str, int)) and _KEY.match(str(key)) else redacted(child)
            for key, child in value.items()
        }
    elif isinstance(value, (list, tuple)):
        found = type(value)(redacted(child) for child in value)
    return found


def redacted_yaml(text: str) -> str:
    """`redacted` for the text of a YAML file, by its keys too."""
    return _YAML.sub(rf"\1{MARK}", redacted(text))


def redacted_words(text: str) -> str:
    """`redacted` for what may repeat a command line: by the keys of its overrides too."""
    return _OVERRIDE.sub(rf"\1{MARK}", redacted(text))


def _known() -> list[str]:
    """Values that were given under a secret's name: WANDB_API_KEY, HF_TOKEN, logger.api_key=…; the longest first."""
    named = [*os.environ.items(), *(word.split("=", 1) for word in sys.argv if "=" in word)]
    values = {value.strip("'\"") for name, value in named if _KEY.match(name)}
    # A path is where a secret lies, not the secret.
    found = {v for v in values if len(v) >= SHORTEST and v[0] not in "/~." and "${" not in v}
    return sorted(found, key=len, reverse=True)


def redact_file(path: Path) -> None:
    """Take the secrets out of a YAML file that holds a config or overrides, if it is there and has any."""
    if not path.is_file():
        return
    text = path.read_text("utf-8")
    safe = redacted_words(redacted_yaml(text))
    if safe != text:
        write_whole(path, safe)


class Formatter(logging.Formatter):
    """A log's lines, errors and their traces without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted_words(super().format(record))


@contextmanager
def redacted_arguments() -> Iterator[None]:
    """Within: the command line that libraries see, and keep with a run, has no secrets."""
    given = sys.argv
    sys.argv = [redacted_words(word) for word in given]
    try:
        yield
    finally:
        sys.argv = given
