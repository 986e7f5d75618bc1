"""Complete the config of a run of an older bora with the settings that are newer than the run."""

from functools import cache
from typing import Any

import yaml

from bora.config.schema import DISCRIMINATORS, conf_folder, flatten

DICTIONARIES = ("trainer.extra", "model.config")


def newer_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a run lacks, flat, with conf/'s defaults, which preserve the earlier behaviour.

    Args:
        settings: the run's settings, flat: {"prior.penalty": "gaussian", …}.
    """
    sources = {group: settings.get(f"{group}.{key}") for group, key in DISCRIMINATORS.items()}
    known = set(map(_setting, settings))
    return {key: value for key, value in _defaults(**sources).items() if _setting(key) not in known}


def _setting(key: str) -> str:
    """Return the setting that a key belongs to: some settings are dictionaries with their own keys."""
    return next((setting for setting in DICTIONARIES if key.startswith(f"{setting}.")), key)


@cache
def _defaults(**sources: Any) -> dict[str, Any]:
    """Read conf/'s values, flat, without those that are interpolated or that the user must give.

    Args:
        sources: group → the value that decides which settings it has, such as table for data.
    """
    values = _read("config")
    del values["hydra"]
    for choice in values.pop("defaults"):
        group, name = next(iter(choice.items())) if isinstance(choice, dict) else (choice, None)
        if group in sources:
            files = (_read(f"{group}/{file.stem}") for file in sorted((conf_folder() / group).glob("[!_]*.yaml")))
            mine = (file for file in files if file[DISCRIMINATORS[group]] == sources[group])
            values[group] = _read(f"{group}/_shared") | next(mine, {})
        elif name is not None:
            values[group] = _read(f"{group}/{name}")
        if group in values:
            values[group].pop("defaults", None)
    plain = flatten(values).items()
    return {key: value for key, value in plain if value != "???" and "${" not in str(value)}


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((conf_folder() / f"{name}.yaml").read_text("utf-8"))
