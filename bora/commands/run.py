"""The command `bora run tau=100`, or as a sweep `bora run -m tau=0,100,inf`."""

import logging
import os
import shlex
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from bora.commands.exits import cli_errors, describe_error, exit_for
from bora.commands.overrides import overrides_in, prepare
from bora.commands.tables import print_tasks
from bora.config.compose import compose_config, format_value, recorded, to_config
from bora.config.schema import conf_folder
from bora.lib.console import short_path
from bora.lib.machine import find_launch, is_first_process
from bora.runs.directory import RunDirectory, choosing_perplexity
from bora.runs.replay import AGAIN, changed_defaults, replay, split_again
from bora.runs.sweep import record_failure

log = logging.getLogger(__name__)


@hydra.main(config_path=str(conf_folder()), config_name="config", version_base="1.3")
def job(composed: DictConfig) -> float | None:
    """Train one run: a sweep's job, or the only one.

    Returns:
        Its validation perplexity, for sweepers to minimise; None for a sweep's job that failed. The reason is then in its
        folder, and the other jobs still run.
    """
    hydra_config = HydraConfig.get()
    sweep = hydra_config.mode == RunMode.MULTIRUN
    folder = Path(hydra_config.runtime.output_dir)
    try:
        config = to_config(composed)  # report mistakes before the import below, which takes seconds
        from bora.runs.trackers.wandb import forget_wandb_run
        from bora.train.run import train
        from bora.use.samples import sample_texts

        if sweep:
            forget_wandb_run()
        trained = train(
            config,
            RunDirectory(folder),
            group=Path(hydra_config.sweep.dir).name if sweep else config.name,
            name=folder.name if sweep else f"tau={format_value(config.tau)},seed={config.seed}",
            overrides=recorded(list(hydra_config.overrides.task)),
            write_samples=sample_texts,
        )
        if is_first_process():
            print_results(RunDirectory(folder))
            if not sweep:  # a sweep prints its own end
                print_next(RunDirectory(folder), trained.tracked, trained.prompt or "TEXT")
    except Exception as error:
        if not sweep:
            exit_for(error, resume_command())  # here, since Hydra would add its own lines
            raise
        if is_first_process():
            record_failure(error, folder, describe_error(error))
        return None
    return choosing_perplexity(trained.summary)


def print_results(directory: RunDirectory) -> None:
    """Print a finished run's table, from its files, and where the files are."""
    print_tasks(directory.per_task(), directory.summary())
    print(f"run directory: {directory.path.resolve()}")


def print_next(directory: RunDirectory, tracked: str, prompt: str) -> None:
    """Print where a tracker shows the run, and commands that use a finished run, ready to type."""
    if tracked:
        print(tracked)
    run, task = short_path(directory.path), directory.per_task()["task"][0]
    print("next:")
    for command in (
        ["report", run],
        ["generate", run, "--task", task, "--prompt", prompt],
        ["evaluate", run, "--data", "FILE"],
    ):
        print(f"  bora {shlex.join(command)}")


typed: list[str] = []  # the command line as typed; sys.argv has the result of `prepare`


def resume_command() -> str:
    """Return the command that resumes this one: as typed, and in the same run directory, which has a time in its name.

    Only the first of several processes returns it; the others return an empty string.
    """
    if not is_first_process():
        return ""
    folder = [word for word in sys.argv[1:] if word.startswith("hydra.run.dir=") and word not in typed]
    words = shlex.join([*typed, *folder[:1]])
    launch = find_launch()
    if launch is None or launch.processes == 1:
        return f"bora run {words}"
    return f"{launch.by} … {'-m bora.run' if launch.by == 'torchrun' else 'bora run'} {words}"


def main() -> None:
    typed[:] = sys.argv[1:]
    # Without this Hydra would end the process itself, with code 1, and errors would not be raised here.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    if sys.path[0] not in ("", str(Path.cwd())):  # a file random.py in the working folder must not shadow Python's
        os.environ.setdefault("PYTHONSAFEPATH", "1")  # for the processes that launchers start
    with cli_errors(resume_command):
        run, words = split_again(sys.argv[1:])
        if run is not None:
            given, words = words, replay(run, words)
            for line in changed_defaults(run, compose_config(overrides_in(replay(run, [])))[0], given):
                print(f"{AGAIN}: {line}")
        sys.argv[1:] = prepare(words)
        job()


if __name__ == "__main__":
    # Imported by name, not run as __main__, since a sweep's other processes import the job from there.
    from bora.commands.run import main as run

    run()
