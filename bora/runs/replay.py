"""A run directory's config.yaml, which may come from anywhere: plain values, of which none does anything by itself."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bora.config import CLOSED, GROUPS, config_folder, flat, plain
from bora.errors import UserError, first_line
from bora.lib.files import require_regular_file

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
    "model.attention": "auto",
    "model.compile": False,
    "model.quantization": None,
    "prior.estimator": "dense",
}
# What every run has, whatever else its group has → where today's values stand.
SHARED = {
    **{group: f"{group}/_shared.yaml" for group in ("data", "model", "logger")},
    **{group: file for group, file in CLOSED.items() if group in GROUPS},
}
AGAIN = "--again"
DEEPEST = 50  # levels of a config
BEGIN = (
    yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken, yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken,
)  # fmt: skip
END = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


def read_config(file: Path) -> DictConfig:
    """The config as it was written, all resolved.

    Raises:
        UserError: there is no such file, it is no config, or it holds what would be looked up when it is read.
    """
    try:
        text = require_regular_file(file).read_text("utf-8")
        depth = 0
        for token in yaml.scan(text):
            # Aliases let a few lines stand for more than memory holds; a config that was written has none.
            if isinstance(token, yaml.AliasToken):
                raise UserError(f"{file}: a run's config has no YAML aliases")
            depth += isinstance(token, BEGIN) - isinstance(token, END)
            if depth > DEEPEST:  # each level takes the scanner longer
                raise UserError(f"{file}: a run's config is not nested {DEEPEST} deep")
        cfg = OmegaConf.create(text)
        if not isinstance(cfg, DictConfig) or not cfg:
            raise UserError(f"{file} is no config")
        for key, value in flat(OmegaConf.to_container(cfg)).items():
            if "${" in str(value) or "${" in key:  # it could read the environment
                raise UserError(f"{file}: {key} is an interpolation, and a run's config is resolved")
            if isinstance(value, str) and value in MOVED:
                OmegaConf.update(cfg, key, MOVED[value])
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{file} is not readable: {first_line(error)}") from error
    return cfg


def with_earlier(cfg: DictConfig) -> dict[str, Any]:
    """A config that was read, flat: {"prior.penalty": "gaussian", …}; what it is too old to say is filled in."""
    return EARLIER | flat(OmegaConf.to_container(cfg))


def check_calls(cfg: DictConfig, part: str = "") -> None:
    """Hold what Hydra would be asked to call to the functions that conf/ names there, called with plain values.

    Args:
        cfg: a config that was read.
        part: what is looked at, "model.loader" say; all of it without.

    Raises:
        UserError: it would have anything else called.
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
            raise UserError(
                f"{CONFIG}: {key} is not what conf/{key.split('.')[0]} has, and a run directory may have nothing else "
                "called"
            )


def up_to_date(cfg: DictConfig) -> None:
    """Fill in what a config is too old to say: what was done before there was a key for it, else today's value."""
    known = flat(OmegaConf.to_container(cfg))
    files = {"": CONFIG} | {f"{key}.": file for key, file in SHARED.items()}
    today = {
        prefix + key: value
        for prefix, file in files.items()
        for key, value in flat(OmegaConf.to_container(OmegaConf.load(config_folder() / file))).items()
        if prefix or key.split(".")[0] not in ("defaults", "hydra")
    }
    for key, value in (today | EARLIER).items():
        if key not in known and isinstance(OmegaConf.select(cfg, key.rpartition(".")[0]), DictConfig):
            OmegaConf.update(cfg, key, value, force_add=True)


@contextmanager
def as_configs(run: Path, place: Path | None = None) -> Iterator[Path]:
    """Within: a folder for Hydra like conf/, which composes the run's config, and any group of it otherwise (data=…).

    Args:
        run: a run directory.
        place: where the folder is made; None for the system's own place.

    Raises:
        UserError: its config cannot be read, or would have anything called but bora's own functions.
    """
    cfg = read_config(run.expanduser() / CONFIG)
    check_calls(cfg)
    groups = {group: cfg[group] for group in GROUPS if isinstance(cfg.get(group), DictConfig)}
    for prefix, part in {"": cfg, **{f"{group}.": part for group, part in groups.items()}}.items():
        for key in ("hydra", "defaults"):
            if key in part:
                raise UserError(f"{CONFIG}: {prefix}{key} has no place in a run's config")
    up_to_date(cfg)
    whole = cast(DictConfig, OmegaConf.load(config_folder() / CONFIG))
    if cfg.get("name") == f"{OmegaConf.select(cfg, 'data.name')}-{OmegaConf.select(cfg, 'model.name')}":
        cfg["name"] = plain(whole, resolve=False)["name"]  # it follows what is chosen anew
    defaults = [*({group: "again"} for group in groups), "_self_", {"experiment": None}, {"sweep": None}]
    # Folders, logs and what a sweep does at its end are as in any run.
    hydras = OmegaConf.merge(whole.hydra, {"searchpath": [f"file://{config_folder().as_posix()}"]})
    rest = {key: value for key, value in plain(cfg, resolve=False).items() if key not in groups}
    with tempfile.TemporaryDirectory(prefix="again-", dir=place) as name:
        folder = Path(name)
        for group, part in groups.items():
            (folder / group).mkdir()
            OmegaConf.save(part, folder / group / "again.yaml")
        OmegaConf.save({"defaults": defaults, **rest, "hydra": hydras}, folder / CONFIG)
        yield folder


@contextmanager
def again(arguments: list[str]) -> Iterator[list[str]]:
    """The command line `--again RUN …` as Hydra knows it; any other as it is.

    Raises:
        UserError: see `as_configs`.
    """
    program, *words = arguments
    words = [
        part for word in words for part in (word.split("=", 1) if word.startswith(f"{AGAIN}=") else [word])
    ]
    if AGAIN not in words:
        yield arguments
        return
    place = words.index(AGAIN)
    if place + 1 == len(words):
        raise UserError(f"{AGAIN} needs a run directory: {AGAIN} RUN")
    run = Path(words[place + 1])
    del words[place : place + 2]
    if AGAIN in words:
        raise UserError(f"{AGAIN} is given twice; one run can be done again")
    with as_configs(run, _seen_by_all()) as folder:
        yield [program, "--config-path", str(folder), "--config-name", "config", *words]


def _seen_by_all() -> Path | None:
    """The cache folder, which a cluster's machines share more likely than their /tmp; None if it cannot be used.

    A sweep's jobs compose their config where they run.
    """
    from bora.lib.cache import cache_root  # which brings Arrow

    place = cache_root()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return place if os.access(place, os.W_OK) else None
