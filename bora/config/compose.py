"""Turn the overrides of a command line, or of bora.fit, into a checked config.

Hydra composes conf/, and bora.config.schema decides which settings are valid. So each KEY=VALUE is passed to Hydra as
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
# Settings that are text: in them 2020_21 and 1e5 are names, which Hydra would read as numbers.
TEXTS = FOLDERS | {"hydra.sweep.subdir", "name", "model.name", "model.path", "data.name", "data.path"}
TEXTS |= {"data.task", "data.text", "data.messages", "data.date"}
WRITTEN = ("data.prompt", "data.template")  # in these a line break may be written \\n
MAX_NAME_CHARS = 40  # for each value in a folder's name, which file systems limit to 255 bytes
# A group that takes more than its choices in conf/ → how to give anything else.
ANY_OTHER = {
    "model": "for a model of the hub or a folder give model=hub model.path={choice}",
    "data": "for a table give data=table data.path={choice}",
}


def format_value(value: Any) -> str:
    """Format a value for a folder's name: 100.0 as 100, 1e5 as 100000, a path as its last part.

    If this leaves something out, a short hash follows, so that different values get different names.
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
        swept: keys and groups that the sweep varies. `prepare` writes them into the command line, since a job does not
            know which of its overrides the other jobs share.
    """
    job = {override.key_or_group: override.value() for override in parse_overrides(_root_.hydra.overrides.task)}
    parts = {"tau": _root_.tau, "seed": _root_.seed}
    for key in sorted(set(swept) - set(parts)):
        # A group (model=…) is named by its choice, a setting by its value.
        parts[key] = job.get(key, "")
    return ",".join(f"{key}={format_value(value)}" for key, value in parts.items())


def parse_overrides(words: list[str]) -> list[Override]:
    # For glob(), which asks the loader for a group's choices.
    loader = ConfigLoaderImpl(create_config_search_path(str(conf_folder())))
    return OverridesParser.create(loader).parse_overrides(list(words))


def forced(word: str) -> str:
    """Rewrite an override for Hydra: KEY=VALUE becomes ++KEY=VALUE, and a value that Hydra cannot parse is quoted.

    An override that already begins with ++ is unchanged.

    Raises:
        UserError: the override's value holds a secret, or it cannot be parsed.
    """
    key, equals, value = word.partition("=")
    if key in WRITTEN:  # in quotes, a shell leaves \\n as typed
        value = re.sub(r"(?<!\\)\$\{", r"\${", value.replace("\\n", "\n"))  # OmegaConf would interpolate ${…}
        word = f"{key}={value}"
    if not equals and not key.startswith("~"):
        raise UserError(f"{word!r} sets nothing: write KEY=VALUE in one word, as in tau=100")
    if problem := find_secret(key.lstrip("+~"), value):
        raise UserError(problem)
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        # Already in quotes, with another one inside: 'Customer's question: '.
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
    # Hydra reads a backslash as an escape only before a quote and at the end.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: 2 * m[1] + m[2].replace("'", r"\'"), value) + "'"


def recorded(words: list[str]) -> list[str]:
    """Return overrides as they were typed, without the ++ of `forced`."""
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
    """Let Hydra compose from conf/ inside the context, then restore the caller's Hydra: a process has only one."""
    of_caller = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = of_caller


def _no_such_choice(group: str, choice: str) -> str:
    """Describe a choice that a group lacks, with the group's choices and a guess at what was meant."""
    choices = sorted(file.stem for file in (conf_folder() / group).glob("[!_]*.yaml"))
    close = difflib.get_close_matches(choice, choices, n=1)
    hint = f"; did you mean {group}={close[0]}?" if close else ""
    if not close and group in ANY_OTHER:
        hint = "; " + ANY_OTHER[group].format(choice=choice)
    return f"{group}={choice}: there is no such choice ({', '.join(choices)}){hint}"


def to_config(composed: DictConfig) -> Config:
    """Check what Hydra composed; raise a UserError if it does not fit the schema, or would fetch a secret."""
    raw = cast(dict[str, Any], OmegaConf.to_container(composed))
    raw.pop("hydra", None)
    fetching = [line for key, value in flatten(raw).items() if (line := find_secret(key, value))]
    if fetching:  # before resolving, which would fetch it
        raise UserError("\n".join(fetching))
    if any(value == "???" for value in flatten(raw).values()):  # values that refer to these cannot be resolved
        return parse(raw)
    bare = OmegaConf.masked_copy(composed, list(raw))
    return parse(cast(dict[str, Any], OmegaConf.to_container(bare, resolve=True)))


# The resolvers of ${bora.job_name:…} and ${bora.short:…} in conf/.
OmegaConf.register_new_resolver("bora.job_name", name_job, replace=True)
OmegaConf.register_new_resolver("bora.short", format_value, replace=True)
