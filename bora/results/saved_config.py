"""A run directory's config.yaml, which may come from anywhere: plain values, of which none does anything by itself."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bora.config import config_folder, flat
from bora.errors import InputError, first_line

CONFIG = "config.yaml"
# Where the loaders were when an older config.yaml was written → where they are.
MOVED = {
    f"bora.model.backbone.{name}": f"bora.model.pretrained.{name}"
    for name in ("from_pretrained", "packaged", "random_weights", "smollm2_135m")
}
# What was done before there was a key for it.
EARLIER = {
    "data.order": "shuffled",
    "data.prepend_bos": True,
    "data.score_padding": False,
    "init_from": None,
    "likelihood": "sum",
    "model.quantization": None,
    "prior.estimator": "dense",
}
AGAIN = "--again"


def read_config(file: Path) -> DictConfig:
    """The config as it was written, all resolved.

    Raises:
        InputError: there is no such file, it is no config, or it holds what would be looked up when it is read.
    """
    try:
        text = file.read_text("utf-8")
        # Aliases let a few lines stand for more than memory holds; a config that was written has none.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise InputError(f"{file}: a run's config has no YAML aliases")
        cfg = OmegaConf.create(text)
        if not isinstance(cfg, DictConfig) or not cfg:
            raise InputError(f"{file} is no config")
        for key, value in flat(OmegaConf.to_container(cfg)).items():
            if "${" in str(value) or "${" in key:  # it could read the environment
                raise InputError(f"{file}: {key} is an interpolation, and a run's config is resolved")
            if isinstance(value, str) and value in MOVED:
                OmegaConf.update(cfg, key, MOVED[value])
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{file} is not readable: {first_line(error)}") from error
    return cfg


def read_settings(file: Path) -> dict[str, Any]:
    """The same, flat: {"prior.penalty": "gaussian", …}; what it is too old to say is filled in."""
    return EARLIER | flat(OmegaConf.to_container(read_config(file)))


def check_calls(cfg: DictConfig, part: str = "") -> None:
    """Hold what Hydra would be asked to call to the functions that conf/ names there, called with plain values.

    Args:
        cfg: a config that was read.
        part: what is looked at, "model.loader" say; all of it without.

    Raises:
        InputError: it would have anything else called.
    """
    known: dict[str, set[str]] = {}
    for file in config_folder().glob("*/*.yaml"):
        for key, value in flat(OmegaConf.to_container(OmegaConf.load(file))).items():
            if key.endswith("._target_"):
                known.setdefault(f"{file.parent.name}.{key}", set()).add(value)
    for key, value in flat(OmegaConf.to_container(cfg)).items():
        if not f"{key}.".startswith(f"{part}." if part else ""):
            continue
        special = any(word.startswith("_") for word in key.split(".")) or "_target_" in str(value)
        if special and value not in known.get(key, ()):
            raise InputError(
                f"{CONFIG}: {key} is not what conf/{key.split('.')[0]} has, and a run directory may have nothing else "
                "called"
            )


@contextmanager
def again(arguments: list[str]) -> Iterator[list[str]]:
    """The command line `--again RUN …` as Hydra knows it; any other as it is.

    Raises:
        InputError: RUN's config cannot be read, or would have anything called but bora's own functions.
    """
    if AGAIN not in arguments:
        yield arguments
        return
    place = arguments.index(AGAIN)
    if place + 1 == len(arguments):
        raise InputError(f"{AGAIN} needs a run directory: {AGAIN} RUN")
    cfg = read_config(Path(arguments[place + 1]).expanduser() / CONFIG)
    check_calls(cfg)
    for key in ("hydra", "defaults"):
        if key in cfg:
            raise InputError(f"{CONFIG}: {key} has no place in a run's config")
    # Folders, logs and what a sweep does at its end are as in any run.
    cfg["hydra"] = cast(DictConfig, OmegaConf.load(config_folder() / CONFIG)).hydra
    with tempfile.TemporaryDirectory() as folder:
        OmegaConf.save(cfg, Path(folder) / CONFIG)
        yield [
            *arguments[:place], "--config-path", folder, "--config-name", "config", *arguments[place + 2 :],
        ]  # fmt: skip
