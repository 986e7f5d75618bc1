"""Overrides: from the words of a command line, or of bora.fit, to a checked config.

Hydra composes conf/, the schema (bora.config) decides what may stand in it. So each KEY=VALUE is handed to Hydra as
++KEY=VALUE: Hydra then complains of no key, and the schema names all that are wrong at once.
"""

import hashlib
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from bora.config import Config, conf_folder, find_secret, flatten, parse
from bora.errors import UserError

MULTIRUN = ("-m", "--multirun")
MAX_CHECKED = 100  # values of one setting in a sweep that are checked before its first job


def register_resolvers() -> None:
    """Define `${bora.job_name:…}` and `${bora.short:…}` for the configs in conf/."""
    OmegaConf.register_new_resolver("bora.job_name", name_job, replace=True)
    OmegaConf.register_new_resolver("bora.short", format_value, replace=True)


def format_value(value: Any) -> str:
    """Write a value as part of a folder's name: 100.0 as 100, 1e5 as 100000, a path by its last part.

    Values that differ get names that differ: where the name leaves something out, a short hash of it all follows.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:.12g}"
    text = str(value)
    plain = re.sub(r"[^\w.+\-@]+", "-", Path(text).name if "/" in text else text).strip("-")
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def name_job(*swept: str, _root_: DictConfig) -> str:
    """Name a sweep job's folder: tau and seed, then whatever else the sweep varies, by value.

    Args:
        swept: keys and groups that the sweep varies. `prepare` writes them into the command line, since a job alone does
            not know which of its overrides the others share.
    """
    job = {override.key_or_group: override.value() for override in _parse(_root_.hydra.overrides.task)}
    parts = {"tau": _root_.tau, "seed": _root_.seed}
    for key in sorted(set(swept) - set(parts)):
        # A group (model=…) is named by the option chosen, a value by the value.
        parts[key] = job.get(key, "")
    return ",".join(f"{key}={format_value(value)}" for key, value in parts.items())


def _parse(words: list[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(words))


def prepare(words: list[str]) -> list[str]:
    """Make a command line that Hydra takes, and check a sweep's values before its first job.

    Args:
        words: as typed: flags of Hydra's, and overrides.

    Raises:
        UserError: a setting or value that there is not; in a sweep, of any job.
    """
    # Flags first: Hydra's parser takes no override before one and another behind it.
    words = [word for word in words if _is_flag(word)] + [forced(word) for word in words if not _is_flag(word)]
    if not any(word in MULTIRUN for word in words):
        return words
    overrides = _parse([word for word in words if not _is_flag(word)])
    first, *others = _jobs_to_check(overrides)
    composed = _compose(first)
    to_config(composed)
    for job in others:
        to_config(_compose(job))
    swept = {o.key_or_group for o in overrides if o.is_sweep_override()}
    swept |= set(OmegaConf.select(composed, "hydra.sweeper.params") or {})
    if not any(o.key_or_group == "hydra.sweep.subdir" for o in overrides):
        words.append(f"hydra.sweep.subdir='${{bora.job_name:{','.join(sorted(swept))}}}'")
    return words


def _jobs_to_check(overrides: list[Override]) -> Iterator[list[str]]:
    """Yield the first job's overrides, then for each value that the sweep takes a job that has it."""
    values = [
        list(islice(o.sweep_string_iterator(), MAX_CHECKED))
        if o.is_discrete_sweep()
        else [o.get_value_element_as_str()]
        for o in overrides
        if not o.is_interval_sweep()
    ]
    keys = [o.get_key_element() for o in overrides if not o.is_interval_sweep()]
    first = [f"{key}={choices[0]}" for key, choices in zip(keys, values, strict=True)]
    yield first
    for i, choices in enumerate(values):
        for value in choices[1:]:
            yield [*first[:i], f"{keys[i]}={value}", *first[i + 1 :]]


def _is_flag(word: str) -> bool:
    return word.startswith("-") or not re.match(r"[+~\w./@-]+=|~", word)


def overrides_in(words: list[str]) -> list[str]:
    """List a command line's overrides, of a sweep those of its first job."""
    overrides = _parse([forced(word) for word in words if not _is_flag(word)])
    return next(_jobs_to_check(overrides))


def forced(word: str) -> str:
    """Write one override as Hydra takes it: KEY=VALUE as ++KEY=VALUE, and a value that Hydra cannot read in quotes.

    Raises:
        UserError: its value holds a secret, or cannot be read.
    """
    key, _, value = word.partition("=")
    if problem := find_secret(key.lstrip("+~"), value):
        raise UserError(problem)
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        quoted = f"{key}={quote(value)}"
        try:
            override = OverridesParser.create().parse_override(quoted)
        except HydraException as error:
            raise UserError(
                f"Invalid override {word!r}: write KEY=VALUE, with the value in quotes: KEY='VALUE'"
            ) from error
        word = quoted
    name = override.key_or_group
    is_group = "/" in name or (conf_folder() / name).is_dir()
    if (
        is_group
        or name.split(".")[0] == "hydra"
        or override.is_delete()
        or override.is_add()
        or override.is_force_add()
    ):
        return word
    return f"++{word}"


def quote(value: str) -> str:
    """Write a value in quotes, which Hydra reads as this very text."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def recorded(words: list[str]) -> list[str]:
    """Write overrides as they were typed, without the ++ of `forced`."""
    return [word.removeprefix("++") for word in words]


def compose_config(overrides: list[str]) -> tuple[Config, Path]:
    """Compose and check one run's config, as `bora run` would.

    Args:
        overrides: as typed.

    Returns:
        The config, and the run directory that Hydra would choose.

    Raises:
        UserError: a setting or value that there is not.
        HydraException: a group's option that there is not.
    """
    composed = _compose([forced(word) for word in overrides])
    return to_config(composed), Path(str(OmegaConf.select(composed, "hydra.run.dir")))


def _compose(overrides: list[str]) -> DictConfig:
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", overrides, return_hydra_config=True)


def to_config(composed: DictConfig) -> Config:
    """Turn what Hydra composed into the checked config.

    Raises:
        UserError: it does not fit the schema, or reads the environment.
    """
    raw = cast(dict[str, Any], OmegaConf.to_container(composed))
    raw.pop("hydra", None)
    fetching = [line for key, value in flatten(raw).items() if (line := find_secret(key, value))]
    if fetching:  # before it is resolved, which would fetch it
        raise UserError("\n".join(fetching))
    if any(value == "???" for value in flatten(raw).values()):  # and what is made of them cannot be resolved
        values = raw
    else:
        bare = OmegaConf.masked_copy(composed, list(raw))
        values = cast(dict[str, Any], OmegaConf.to_container(bare, resolve=True))
    return parse(values)
