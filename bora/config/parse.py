"""Turn plain values, from Hydra or from a run's config.yaml, into a checked Config.

Later code sees no DictConfig. Each problem is one line: the setting, its value, and what it must be.
"""

import difflib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, get_args

from pydantic import ValidationError

from bora.config.rules import RESERVED, find_secret, rules
from bora.config.schema import DISCRIMINATORS, AnyData, AnyLogger, AnyModel, Config, Group, flatten
from bora.errors import UserError


def parse(values: dict[str, Any]) -> Config:
    """Check plain values against the schema; raise a UserError with a line for each problem."""
    problems = [secret for key, value in flatten(values).items() if (secret := find_secret(key, value))]
    try:
        config = Config.model_validate(_without_missing(values))
    except ValidationError as error:
        raise UserError("\n".join([*problems, *_describe(error, values)])) from error
    problems += rules(config)
    if problems:
        raise UserError("\n".join(problems))
    return config


def _without_missing(values: Any) -> Any:
    """Remove values that OmegaConf marks as missing, ???, so that they are reported as missing."""
    if not isinstance(values, dict):
        return values
    return {key: _without_missing(value) for key, value in values.items() if value != "???"}


def _describe(error: ValidationError, values: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each setting that pydantic refused: its name, its value, and what it must be."""
    expected: dict[str, list[str]] = {}
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        if place[0] in DISCRIMINATORS and len(place) > 1:
            del place[1]  # where pydantic names the member of the union
        key = ".".join(place)
        match problem["type"]:
            case "extra_forbidden":  # its value may be a secret
                yield f"{key}: there is no such setting{_suggest(key, values)}"
            case "missing":
                yield f"{key} is required and has no default; give {key}=…"
            case "union_tag_invalid" | "union_tag_not_found":
                yield f"{key}.{DISCRIMINATORS[key]} must be one of {', '.join(_members(key))}; give {key}=NAME"
            case _:
                # For a setting of several types, pydantic adds the type that it tried.
                while len(place) > 1 and _value_at(values, place) is _ABSENT:
                    place.pop()
                expected.setdefault(".".join(place), []).append(problem["msg"].removeprefix("Input should be "))
    for key, messages in expected.items():
        value = _value_at(values, key.split("."))
        if key == "tau":
            messages = ["a number from 0 to inf, or learn; with data.levels also a list of numbers"]
        yield f"{key}={_shown(value)} must be {' or '.join(dict.fromkeys(messages))}"


def _shown(value: Any) -> str:
    """Format a value. Text that reads as a number gets quotes, since they are what is wrong with it."""
    if isinstance(value, str):
        with suppress(ValueError):
            return f"{value!r} (text)" if float(value) >= 0 else value
    return "null" if value is None else str(value)


_ABSENT = object()


def _value_at(values: Any, place: list[str]) -> Any:
    for part in place:
        if isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        elif isinstance(values, dict):
            values = values.get(part, _ABSENT)
        else:
            return _ABSENT
    return values


def _suggest(key: str, values: dict[str, Any]) -> str:
    """Guess the setting that was meant."""
    group, _, name = key.partition(".")
    if group == "trainer" and name in RESERVED:
        return f"; {RESERVED[name]}"
    if group in DISCRIMINATORS:
        having = [choice for choice, member in _members(group).items() if name in member.model_fields]
        if having:
            chosen = values[group].get(DISCRIMINATORS[group])
            others = ", ".join(f"{group}={choice}" for choice in having)
            return f" for {group}={chosen}, only for {others}; give {group}={having[0]} {key}=…"
    close = [k for k in _known_keys({}) if k.rpartition(".")[2] == key]
    close = close or difflib.get_close_matches(key, _known_keys(values), n=1)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _members(group: str) -> dict[str, type[Group]]:
    """Map each choice of a group's discriminator to its class."""
    members = get_args({"data": AnyData, "model": AnyModel, "logger": AnyLogger}[group])
    return {get_args(m.model_fields[DISCRIMINATORS[group]].annotation)[0]: m for m in members}


def _known_keys(values: dict[str, Any]) -> list[str]:
    """List all settings that go with the chosen sources, or with any source if none is chosen."""

    def walk(owner: type[Group], prefix: str) -> Iterator[str]:
        for name, field in owner.model_fields.items():
            kinds: list[Any] = [field.annotation]
            if name in DISCRIMINATORS and not prefix:
                members, chosen = _members(name), values.get(name)
                choice = chosen.get(DISCRIMINATORS[name]) if isinstance(chosen, dict) else None
                kinds = [members[choice]] if choice in members else [*members.values()]
            for kind in kinds:
                if isinstance(kind, type) and issubclass(kind, Group):
                    yield from walk(kind, f"{prefix}{name}.")
                else:
                    yield prefix + name

    return list(dict.fromkeys(walk(Config, "")))
