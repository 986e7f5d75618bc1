"""The command line of `bora run`: check the settings of all jobs before the first, and determine their folders."""

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from hydra._internal.utils import get_args_parser  # Hydra decides what `bora run` takes
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from bora.config.compose import compose_whole, forced, parse_overrides, recorded, to_config
from bora.config.schema import Trainer
from bora.errors import UserError
from bora.lib.machine import Launch, check_launch, find_launch, is_first_process, require_gpus
from bora.runs.directory import RunDirectory

MAX_CHECKED = 100  # values of one setting in a sweep to check before its first job
# The launchers whose jobs run on this machine.
HERE = (".BasicLauncher", ".JoblibLauncher", ".LocalLauncher")

if sys.version_info >= (3, 14):
    # Hydra's help of --shell-completion is not a string, which argparse now refuses before it reads any command line:
    # https://github.com/facebookresearch/hydra/issues/3121
    argparse.ArgumentParser._check_help = lambda self, action: None  # type: ignore[attr-defined]


def prepare(words: list[str]) -> list[str]:
    """Rewrite a command line for Hydra, and check the settings of every job before the first starts.

    The returned words also determine the run directory, or the name of each job's folder in a sweep.

    Args:
        words: Hydra's flags, and overrides, as typed.

    Raises:
        UserError: a setting is unknown, a value is invalid, or a GPU is missing, in any job of a sweep; two jobs of a
            sweep would share a folder; or a job's folder holds a finished run with other settings.
    """
    arguments, unknown = get_args_parser().parse_known_intermixed_args(words)
    if arguments.shell_completion:
        return words
    if unknown:
        raise UserError(f"there is no option {unknown[0]}; a setting is written without dashes: KEY=VALUE")
    if arguments.config_dir is not None:
        raise UserError(f"--config-dir: give a folder of settings as 'hydra.searchpath=[{arguments.config_dir}]'")
    # Flags first: Hydra's parser refuses a flag between overrides.
    flags = [word for word in words if word not in arguments.overrides]
    plain = [forced(word) for word in arguments.overrides]
    launch = find_launch()
    if arguments.multirun and launch is not None and launch.processes > 1:
        raise UserError(
            f"-m: {launch.by} cannot run a sweep; start each run with its own {launch.by}, or on SLURM all of them with "
            "bora run -m sweep=submitit"
        )
    if arguments.help or arguments.hydra_help or arguments.cfg or arguments.info:
        return flags + plain
    if not is_first_process():  # other processes write and log nothing
        plain.append("hydra/job_logging=none")
        if launch is not None and not any(word.startswith("hydra.run.dir=") for word in plain):
            plain.append("hydra.run.dir=.")  # the first process's is used, whose name may have a time in it
    return flags + (_prepare_sweep(plain) if arguments.multirun else _prepare_run(plain, launch))


def _prepare_run(plain: list[str], launch: Launch | None) -> list[str]:
    """Check the settings of one run, and determine its folder."""
    overrides = parse_overrides(plain)
    for override in overrides:
        if override.is_sweep_override():
            key, value = override.key_or_group, override.get_value_string()
            raise UserError(
                f"{key}={value} is several values: give -m to run each, '{key}=[{value}]' for a list, or "
                f"\"{key}='{value}'\" for one text"
            )
    composed = compose_whole(plain)
    trainer = to_config(composed).trainer
    check_launch(launch, trainer.devices, trainer.num_nodes)
    if _sets(overrides, "hydra.run.dir"):
        return plain
    return [*plain, forced(f"hydra.run.dir={composed.hydra.run.dir}")]


def _prepare_sweep(plain: list[str]) -> list[str]:
    """Check the settings of a sweep's jobs, and determine how their folders are named."""
    overrides = parse_overrides(plain)
    params = OmegaConf.select(compose_whole(next(_jobs_to_check(overrides))), "hydra.sweeper.params") or {}
    # Hydra would also take the experiment's values of such a key, and repeat each given one for each of them.
    plain = plain + [f"~hydra.sweeper.params.{key}" for key in params if _sets(overrides, key) and "." not in key]
    own = parse_overrides([f"{key}={values}" for key, values in params.items()])
    overrides += [override for override in own if not _sets(overrides, override.key_or_group)]
    if not _sets(overrides, "hydra.sweep.subdir"):
        swept = sorted({*params, *(o.key_or_group for o in overrides if o.is_sweep_override())})
        plain.append(f"hydra.sweep.subdir='${{bora.job_name:{','.join(swept)}}}'")
        overrides += parse_overrides(plain[-1:])
    _check_jobs(overrides)
    return plain


def _sets(overrides: list[Override], key: str) -> bool:
    return any(override.key_or_group == key for override in overrides)


def _check_jobs(overrides: list[Override]) -> None:
    """Check a sweep's jobs, each value of each setting once, and that each has a folder for itself.

    A job's name is made of its values, so all names differ if those of jobs that differ in a single value do.
    """
    seen: dict[str, list[str]] = {}
    # One for all jobs: Hydra makes it without the settings that vary.
    launcher = compose_whole([str(o.input_line) for o in overrides if not o.is_sweep_override()]).hydra.launcher
    for number, job in enumerate(_jobs_to_check(overrides)):
        composed = compose_whole([*job, f"++hydra.job.num={number}"])
        config = to_config(composed)
        trainer = config.trainer
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
        RunDirectory(Path(composed.hydra.sweep.dir) / name).refuse_other_settings(config)


def _check_tasks(launcher: DictConfig, trainer: Trainer) -> None:
    """Check that SLURM starts one task for each of a run's processes."""
    if (launcher.nodes, launcher.tasks_per_node) != (trainer.num_nodes, trainer.devices):
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes} trainer.devices={trainer.devices}, but the sweep's jobs would have "
            f"hydra.launcher.nodes={launcher.nodes} hydra.launcher.tasks_per_node={launcher.tasks_per_node}; set "
            "only the first two, to one value each for all jobs"
        )


def _jobs_to_check(overrides: list[Override]) -> Iterator[list[str]]:
    """Yield the first job's overrides, then for each other value in the sweep those of a job that has it."""
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
    """List a command line's overrides; for a sweep, those of its first job."""
    typed = get_args_parser().parse_known_intermixed_args(words)[0].overrides
    return next(_jobs_to_check(parse_overrides([forced(word) for word in typed])))
