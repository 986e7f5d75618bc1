"""Turn the words of a command line, or of bora.fit, into a checked config.

Hydra composes conf/, bora.config.schema decides what may stand in it. So each KEY=VALUE is handed to Hydra as
++KEY=VALUE: Hydra then accepts any key, and the schema reports all wrong ones at once.
"""

import difflib
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf

from bora.config.parse import parse
from bora.config.rules import find_secret
from bora.config.schema import Config, conf_folder, flatten
from bora.errors import UserError

FOLDERS = {"hydra.run.dir", "hydra.sweep.dir"}
# Settings that are text: 2020_21 and 1e5 are names there, which Hydra would read as numbers.
TEXTS = FOLDERS | {"hydra.sweep.subdir", "name", "model.name", "model.path", "data.name", "data.path"}
TEXTS |= {"data.task", "data.text", "data.messages", "data.date"}
WRITTEN = ("data.prompt", "data.template")  # in which a line break may be written \\n
MAX_NAME_CHARS = 40  # of a value in a folder's name, which file systems bound at 255 bytes
# A group whose choices are not all in conf/ → what to give for any other.
ANY_OTHER = {
    "model": "for a model of the hub or a folder give model=hub model.path={choice}",
    "data": "for a table give data=table data.path={choice}",
}


def format_value(value: Any) -> str:
    """Write a value as part of a folder's name: 100.0 as 100, 1e5 as 100000, a path by its last part.

    Where a name leaves something out, a short hash follows, so that values that differ get names that differ.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        short = f"{value:.12g}"
        return short if float(short) == value else repr(value)
    text = str(value)
    if isinstance(value, (list, ListConfig)) and all(isinstance(item, (int, float)) for item in value):
        text = f"[{', '.join(map(format_value, value))}]"
    plain = re.sub(r"[^\w.+\-@]+", "-", Path(text).name if "/" in text else text).strip("-")[:MAX_NAME_CHARS]
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def name_job(*swept: str, _root_: DictConfig) -> str:
    """Name a sweep job's folder: tau and seed, then whatever else the sweep varies, by value.

    Args:
        swept: keys and groups that the sweep varies. `prepare` writes them into the command line, since a job alone does
            not know which of its overrides the others share.
    """
    job = {override.key_or_group: override.value() for override in parse_overrides(_root_.hydra.overrides.task)}
    parts = {"tau": _root_.tau, "seed": _root_.seed}
    for key in sorted(set(swept) - set(parts)):
        # A group (model=…) is named by the option chosen, a value by the value.
        parts[key] = job.get(key, "")
    return ",".join(f"{key}={format_value(value)}" for key, value in parts.items())


def parse_overrides(words: list[str]) -> list[Override]:
    # glob() asks a loader which choices a group has.
    loader = ConfigLoaderImpl(create_config_search_path(str(conf_folder())))
    return OverridesParser.create(loader).parse_overrides(list(words))


def forced(word: str) -> str:
    """Rewrite an override for Hydra: KEY=VALUE becomes ++KEY=VALUE, and a value that it cannot parse is quoted.

    What begins with ++ already stays as it is.

    Raises:
        UserError: its value holds a secret, or cannot be read.
    """
    key, equals, value = word.partition("=")
    if key in WRITTEN:  # a shell's quotes leave \\n as it is typed
        value = re.sub(r"(?<!\\)\$\{", r"\${", value.replace("\\n", "\n"))  # ${…} would be OmegaConf's
        word = f"{key}={value}"
    if not equals and not key.startswith("~"):
        raise UserError(f"{word!r} sets nothing: write KEY=VALUE in one word, as in tau=100")
    if problem := find_secret(key.lstrip("+~"), value):
        raise UserError(problem)
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        # In quotes already, with one more inside: 'Customer's question: '.
        within = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        quoted = f"{key}={quote(value[1:-1] if within else value)}"
        try:
            override = OverridesParser.create().parse_override(quoted)
        except HydraException as error:
            how = "write KEY=VALUE, with the value in quotes: KEY='VALUE'"
            raise UserError(f"Invalid override {word!r}: {how}") from error
        word = quoted
    name = override.key_or_group
    if name in FOLDERS and value.startswith("~"):
        word = f"{key}={Path(value).expanduser()}"
    elif name in TEXTS and type(override.value()) in (int, float):
        word = f"{key}={quote(value)}"
    is_group = "/" in name or (conf_folder() / name).is_dir()
    is_settled = override.is_delete() or override.is_add() or override.is_force_add()
    return word if is_group or is_settled or name.split(".")[0] == "hydra" else f"++{word}"


def quote(value: str) -> str:
    """Quote a value so that Hydra reads back exactly this text."""
    # To Hydra a backslash is an escape before a quote and at the end, and there alone.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: 2 * m[1] + m[2].replace("'", r"\'"), value) + "'"


def recorded(words: list[str]) -> list[str]:
    """Write overrides as they were typed, without the ++ of `forced`."""
    return [word.removeprefix("++") for word in words]


def compose_config(overrides: list[str]) -> tuple[Config, Path]:
    """Compose and check one run's config from overrides as typed, as `bora run` would.

    Returns:
        The config, and the run directory that Hydra would choose.

    Raises:
        UserError: an unknown setting or an invalid value.
        HydraException: an unknown option of a group.
    """
    composed = compose_whole([forced(word) for word in overrides])
    return to_config(composed), Path(str(OmegaConf.select(composed, "hydra.run.dir")))


def compose_whole(overrides: list[str]) -> DictConfig:
    try:
        with _own_hydra():
            return compose("config", overrides, return_hydra_config=True)
    except MissingConfigException as error:
        group, _, choice = str(error.missing_cfg_file).partition("/")
        if not (conf_folder() / group).is_dir():
            raise
        raise UserError(_no_such_choice(group, choice)) from error


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Let Hydra compose from conf/, then restore the caller's Hydra (a process has one)."""
    of_caller = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = of_caller


def _no_such_choice(group: str, choice: str) -> str:
    """Say which choices a group has, and what was meant, as far as it can be guessed."""
    choices = sorted(file.stem for file in (conf_folder() / group).glob("[!_]*.yaml"))
    close = difflib.get_close_matches(choice, choices, n=1)
    hint = f"; did you mean {group}={close[0]}?" if close else ""
    if not close and group in ANY_OTHER:
        hint = "; " + ANY_OTHER[group].format(choice=choice)
    return f"{group}={choice}: there is no such choice ({', '.join(choices)}){hint}"


def to_config(composed: DictConfig) -> Config:
    """Turn what Hydra composed into the checked config; raise a UserError if it does not fit, or fetches a secret."""
    raw = cast(dict[str, Any], OmegaConf.to_container(composed))
    raw.pop("hydra", None)
    fetching = [line for key, value in flatten(raw).items() if (line := find_secret(key, value))]
    if fetching:  # before it is resolved, which would fetch it
        raise UserError("\n".join(fetching))
    if any(value == "???" for value in flatten(raw).values()):  # and what is made of them cannot be resolved
        return parse(raw)
    bare = OmegaConf.masked_copy(composed, list(raw))
    return parse(cast(dict[str, Any], OmegaConf.to_container(bare, resolve=True)))


# What ${bora.job_name:…} and ${bora.short:…} in conf/ stand for.
OmegaConf.register_new_resolver("bora.job_name", name_job, replace=True)
OmegaConf.register_new_resolver("bora.short", format_value, replace=True)
