"""Overrides: from the words of a command line, or of bora.fit, to a checked config.

Hydra composes conf/, the schema (bora.config) decides what may stand in it. So each KEY=VALUE is handed to Hydra as
++KEY=VALUE: Hydra then accepts any key, and the schema reports all wrong ones at once.
"""

import argparse
import difflib
import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser  # what `bora run` takes is Hydra's to say
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf

from bora.config.parse import parse
from bora.config.rules import find_secret
from bora.config.schema import Config, Trainer, conf_folder, flatten
from bora.errors import UserError
from bora.lib.machine import check_launch, find_launch, is_first_process, require_gpus

FOLDERS = {"hydra.run.dir", "hydra.sweep.dir"}
# Settings that are text: 2020_21 and 1e5 are names there, which Hydra would read as numbers.
TEXTS = FOLDERS | {"hydra.sweep.subdir", "name", "model.name", "model.path", "data.name", "data.path"}
TEXTS |= {"data.task", "data.text", "data.messages", "data.date"}
WRITTEN = ("data.prompt", "data.template")  # in which a line break may be written \\n
MAX_NAME_CHARS = 40  # of a value in a folder's name, which file systems bound at 255 bytes
MAX_CHECKED = 100  # values of one setting in a sweep that are checked before its first job
# The launchers whose jobs run on this machine.
HERE = (".BasicLauncher", ".JoblibLauncher", ".LocalLauncher")
# A group whose choices are not all in conf/ → what to give for any other.
ANY_OTHER = {
    "model": "for a model of the hub or a folder give model=hub model.path={choice}",
    "data": "for a table give data=table data.path={choice}",
}

if sys.version_info >= (3, 14):
    # Hydra's help of --shell-completion is no text, and argparse now refuses it before there is any command line to
    # read: https://github.com/facebookresearch/hydra/issues/3121
    argparse.ArgumentParser._check_help = lambda self, action: None  # type: ignore[attr-defined]


def format_value(value: Any) -> str:
    """Write a value as part of a folder's name: 100.0 as 100, 1e5 as 100000, a path by its last part.

    Values that differ get names that differ: where the name leaves something out, a short hash of it all follows.
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
    job = {override.key_or_group: override.value() for override in _parse(_root_.hydra.overrides.task)}
    parts = {"tau": _root_.tau, "seed": _root_.seed}
    for key in sorted(set(swept) - set(parts)):
        # A group (model=…) is named by the option chosen, a value by the value.
        parts[key] = job.get(key, "")
    return ",".join(f"{key}={format_value(value)}" for key, value in parts.items())


def _parse(words: list[str]) -> list[Override]:
    # glob() asks a loader which choices a group has.
    loader = ConfigLoaderImpl(create_config_search_path(str(conf_folder())))
    return OverridesParser.create(loader).parse_overrides(list(words))


def prepare(words: list[str]) -> list[str]:
    """Make a command line that Hydra takes, and check the settings of every job before the first.

    The run directory, or the name of each job's folder in a sweep, is settled here too and stands in the words.

    Args:
        words: as typed: flags of Hydra's, and overrides.

    Raises:
        UserError: an unknown setting, an invalid value, or a GPU that is not there; in a sweep, of any job. Or two jobs
            of a sweep would share a folder.
    """
    arguments, unknown = get_args_parser().parse_known_intermixed_args(words)
    if arguments.shell_completion:
        return words
    if unknown:
        raise UserError(f"there is no option {unknown[0]}; a setting is written without dashes: KEY=VALUE")
    # Flags first: Hydra's parser takes no override before one and another behind it.
    flags = [word for word in words if word not in arguments.overrides]
    plain = [forced(word) for word in arguments.overrides]
    launch = find_launch()
    if arguments.multirun and launch is not None and launch.processes > 1:
        raise UserError(
            f"-m: {launch.by} cannot run a sweep; start each run with a {launch.by} of its own, or on SLURM all of them "
            "with bora run -m sweep=submitit"
        )
    if arguments.help or arguments.hydra_help or arguments.cfg or arguments.info:
        return flags + plain
    if not is_first_process():  # it writes and logs nothing
        plain.append("hydra/job_logging=none")
        if launch is not None and not any(word.startswith("hydra.run.dir=") for word in plain):
            plain.append("hydra.run.dir=.")  # the first process's is taken, whose name may have a time in it
    overrides = _parse(plain)
    if not arguments.multirun:
        for override in overrides:
            if override.is_sweep_override():
                raise UserError(_several_values(override))
        composed = _compose(plain)
        trainer = to_config(composed).trainer
        check_launch(launch, trainer.devices, trainer.num_nodes)
        if not _sets(overrides, "hydra.run.dir"):
            plain.append(forced(f"hydra.run.dir={composed.hydra.run.dir}"))
        return flags + plain
    params = OmegaConf.select(_compose(next(_jobs_to_check(overrides))), "hydra.sweeper.params") or {}
    # Hydra would take the experiment's own values of such a key too, and run each given one as often.
    plain += [f"~hydra.sweeper.params.{key}" for key in params if _sets(overrides, key) and "." not in key]
    overrides += [o for o in _parse([f"{k}={v}" for k, v in params.items()]) if not _sets(overrides, o.key_or_group)]
    if not _sets(overrides, "hydra.sweep.subdir"):
        swept = sorted({*params, *(o.key_or_group for o in overrides if o.is_sweep_override())})
        plain.append(f"hydra.sweep.subdir='${{bora.job_name:{','.join(swept)}}}'")
        overrides += _parse(plain[-1:])
    _check_jobs(overrides)
    return flags + plain


def _sets(overrides: list[Override], key: str) -> bool:
    return any(override.key_or_group == key for override in overrides)


def _several_values(override: Override) -> str:
    """Say how to give several values, a list, or a text with a comma in it."""
    key, value = override.key_or_group, override.get_value_string()
    return (
        f"{key}={value} is several values: for a run with each give -m; for a list give '{key}=[{value}]'; for one text "
        f"give \"{key}='{value}'\""
    )


def _check_jobs(overrides: list[Override]) -> None:
    """Check a sweep's jobs, each value of each setting once, and that no two have one folder.

    A job's name is made of its values, so two jobs differ in name if those differ that differ in one value alone.

    Raises:
        UserError: see `prepare`.
    """
    seen: dict[str, list[str]] = {}
    # One for all jobs: Hydra makes it without what they vary.
    launcher = _compose([str(o.input_line) for o in overrides if not o.is_sweep_override()]).hydra.launcher
    for number, job in enumerate(_jobs_to_check(overrides)):
        composed = _compose([*job, f"++hydra.job.num={number}"])
        trainer = to_config(composed).trainer
        if launcher._target_.endswith(HERE):
            require_gpus(trainer.accelerator, trainer.devices)
            check_launch(find_launch(), trainer.devices, trainer.num_nodes)
        if launcher._target_.endswith(".SlurmLauncher"):
            _check_tasks(launcher, trainer)
        name = composed.hydra.sweep.subdir
        if name in seen:
            different = recorded([word for word in [*seen[name], *job] if not (word in seen[name] and word in job)])
            why = " and ".join(different) or "a value is given twice"
            raise UserError(
                f"two jobs of the sweep would share the folder {name} ({why}); give each value once, or let "
                "hydra.sweep.subdir name each job differently"
            )
        seen[name] = job


def _check_tasks(launcher: DictConfig, trainer: Trainer) -> None:
    """Check that SLURM starts a task for each of a run's processes.

    Raises:
        UserError: it would start others.
    """
    if (launcher.nodes, launcher.tasks_per_node) != (trainer.num_nodes, trainer.devices):
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes} trainer.devices={trainer.devices}, but the sweep's jobs would have "
            f"hydra.launcher.nodes={launcher.nodes} hydra.launcher.tasks_per_node={launcher.tasks_per_node}; set "
            "only the first two, to one value each for all jobs"
        )


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


def overrides_in(words: list[str]) -> list[str]:
    """List a command line's overrides, of a sweep those of its first job."""
    typed = get_args_parser().parse_known_intermixed_args(words)[0].overrides
    return next(_jobs_to_check(_parse([forced(word) for word in typed])))


def forced(word: str) -> str:
    """Write one override as Hydra takes it: KEY=VALUE as ++KEY=VALUE, and a value that Hydra cannot read in quotes.

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
            raise UserError(
                f"Invalid override {word!r}: write KEY=VALUE, with the value in quotes: KEY='VALUE'"
            ) from error
        word = quoted
    name = override.key_or_group
    if name in FOLDERS and value.startswith("~"):
        word = f"{key}={Path(value).expanduser()}"
    elif name in TEXTS and type(override.value()) in (int, float):
        word = f"{key}={quote(value)}"
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
    # To Hydra a backslash is an escape before a quote and at the end, and there alone.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: 2 * m[1] + m[2].replace("'", r"\'"), value) + "'"


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
        UserError: an unknown setting or an invalid value.
        HydraException: an unknown option of a group.
    """
    composed = _compose([forced(word) for word in overrides])
    return to_config(composed), Path(str(OmegaConf.select(composed, "hydra.run.dir")))


def _compose(overrides: list[str]) -> DictConfig:
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
    """Within it Hydra composes from conf/; after it the caller's Hydra, of which a process has one, is as it was."""
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


# What ${bora.job_name:…} and ${bora.short:…} in conf/ stand for.
OmegaConf.register_new_resolver("bora.job_name", name_job, replace=True)
OmegaConf.register_new_resolver("bora.short", format_value, replace=True)
