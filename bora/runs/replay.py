"""`bora run --again RUN KEY=VALUE`: apply the overrides that a run was started with to today's conf/."""

from pathlib import Path

from bora.config.schema import Config, flatten
from bora.errors import UserError
from bora.runs.directory import CONFIG, OVERRIDES
from bora.runs.older import newer_settings
from bora.runs.values import read_yaml

AGAIN = "--again"


def split_again(words: list[str]) -> tuple[Path | None, list[str]]:
    """Take `--again RUN` out of a command line: return RUN, or None if it is not given, and the other words."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith(f"{AGAIN}=") else [word])]
    if AGAIN not in words:
        return None, words
    place = words.index(AGAIN)
    if words.count(AGAIN) > 1 or place + 1 == len(words):
        raise UserError(f"{AGAIN} needs one run directory: {AGAIN} RUN")
    return Path(words[place + 1]).expanduser(), words[:place] + words[place + 2 :]


def replay(run: Path, given: list[str]) -> list[str]:
    """Put a run's recorded overrides before those given now, which replace recorded ones with the same key."""
    keys = {key_of(word) for word in given}
    return [*(word for word in read_overrides(run) if key_of(word) not in keys), *given]


def key_of(override: str) -> str:
    """Return the key or group that an override sets."""
    return override.partition("=")[0].lstrip("+~")


def read_overrides(run: Path) -> list[str]:
    """Read the overrides that a run was started with; raise a UserError if there is no record of them."""
    found = read_yaml(run / OVERRIDES)
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise UserError(f"{run / OVERRIDES} is not a list of overrides")
    return found


def changed_defaults(run: Path, config: Config, given: list[str]) -> list[str]:
    """Return a line for each setting whose value differs from the run's, though it was not given.

    Args:
        config: the config that the run's overrides give today.
        given: overrides given with `--again RUN`.
    """
    theirs, ours = flatten(read_yaml(run / CONFIG)), flatten(config.model_dump())
    theirs |= newer_settings(theirs)
    keys = tuple(f"{key_of(word)}." for word in given)
    changed = (k for k in sorted(theirs.keys() | ours.keys()) if theirs.get(k) != ours.get(k))
    return [
        f"{key}: the run had {theirs.get(key)}, today's default is {ours.get(key)}"
        for key in changed
        if not f"{key}.".startswith(keys) and key != "name"
    ]
