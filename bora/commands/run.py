"""The command: `python -m bora.run tau=100`, or as a sweep `python -m bora.run -m tau=0,100,inf`."""

import errno
import importlib.util
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from bora.config import check, config_folder, register_resolvers
from bora.errors import UserError, first_line, printable, raised_in
from bora.lib.redaction import hydra_files, print_trace, redact_hydra, redacted_words, set_aside
from bora.lib.stopping import Stopped, signal_sent_on
from bora.runs.replay import again

register_resolvers()
log = logging.getLogger(__name__)
SHOW_TRACE = "HYDRA_FULL_ERROR" in os.environ
# What conf/sweep asks Hydra for → our extra, and the package that brings it.
PLUGINS = {
    "hydra/launcher/joblib": ("joblib", "hydra_joblib_launcher"),
    "hydra/launcher/submitit_slurm": ("submitit", "hydra_submitit_launcher"),
    "hydra/launcher/submitit_local": ("submitit", "hydra_submitit_launcher"),
    "hydra/sweeper/optuna": ("optuna", "hydra_optuna_sweeper"),
}


BAD_INPUT, DEFECT = 2, 1  # exit codes; a stopped run's are in bora.lib.stopping
UNUSABLE = "Hydra cannot use an override (a group, such as data=, takes a name, of those in conf/data)"
# The Optuna that Hydra's sweeper needs (< 3) never commits what it asks SQLAlchemy 2 to write.
STORAGE = (
    "hydra.sweeper.storage: Optuna cannot use this storage; leave it null: the same command proposes the same again, and "
    "finished runs are not run anew"
)
# The system's errors that need no trace, and what to do about them.
ELSEWHERE = "choose a folder that can be written to, with hydra.run.dir=… or hydra.sweep.dir=…"
PLACE = dict.fromkeys(
    (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    ELSEWHERE,
)
FULL = "make room; what was saved before is whole, and the same command goes on from it"
NO_MEMORY = "OutOfMemoryError", "can't allocate memory"
MEMORY = "give a smaller lora.rank, data.batch_size or data.max_tokens; bora doctor says what a run costs"
DISK = PLACE | dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO), FULL)


@hydra.main(config_path=str(config_folder()), config_name="config", version_base="1.3")
def job(cfg: DictConfig) -> float | None:
    """One run of a sweep, or the only one.

    Returns:
        Its validation perplexity, for sweepers to minimise; None for a failed job of a sweep, whose
        reason is then in its folder, so that the other jobs go on (bora.runs.sweep tells of it).
    """
    print_anything()  # a sweep's job may be a process of its own
    settings = HydraConfig.get()
    sweep = settings.mode == RunMode.MULTIRUN
    folder = Path(settings.runtime.output_dir)
    redact_hydra(settings)
    try:
        # A mistake in the config is told before the imports below, which take seconds.
        check(cfg)
        from bora.runs.directory import RunDirectory
        from bora.train.run import train

        summary = train(
            cfg,
            RunDirectory(folder, hydra_files(cfg, settings)),
            group=Path(settings.sweep.dir).name if sweep else cfg.name,
            name=folder.name if sweep else f"tau={cfg.tau:g},seed={cfg.seed}",
            given=[override.split("=", 1)[0].lstrip("+~") for override in settings.overrides.task],
        )
    except Exception as error:
        if not sweep:
            leave(error)  # Hydra would add a line of its own to one that is meant to stand alone
            raise
        record(error, folder)
        return None
    return summary["val_perplexity"]


def record(error: Exception, folder: Path) -> None:
    """Note in a sweep job's folder why it failed."""
    from bora.runs.directory import RunDirectory

    line, code = told(error) or (f"{type(error).__name__}: {' '.join(str(error).split())}", None)
    line = redacted_words(line)
    if code is None or SHOW_TRACE:
        log.error("%s failed", folder.name, exc_info=error)
    else:
        log.error("%s failed: %s", folder.name, line)
    when = datetime.now().astimezone().isoformat()
    RunDirectory(folder).write_failure({"error": line, "exit_code": code or DEFECT, "time": when})


def leave(error: Exception) -> None:
    """End with one line on standard error, if the error is the user's to mend."""
    found = told(error)
    if found is None or SHOW_TRACE:
        return
    print("bora:", printable(redacted_words(found[0])), file=sys.stderr)
    sys.exit(found[1])


@contextmanager
def leaving() -> Iterator[None]:
    """Within: what a command does, which ends as `leave` says, and prints no secret."""
    print_anything()
    sys.excepthook = print_trace
    try:
        for word in sys.argv[1:]:
            if any("\ud800" <= letter <= "\udfff" for letter in word):  # Python's sign of a byte that is none
                raise UserError(f"an argument is not in UTF-8: {word}")
        yield
    except KeyboardInterrupt:  # outside training, where bora.lib.stopping sees to it
        print("bora: stopped by SIGINT", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if (
            signum := signal_sent_on()
        ) is not None:  # the launcher's own error says that its jobs were stopped
            raise Stopped(signum) from error
        leave(error)
        raise


def print_anything() -> None:
    """What a terminal's encoding has no letters for (τ in ASCII) is printed as ?, and is no reason to fail."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def told(error: Exception) -> tuple[str, int] | None:
    """The one line that says what the user can mend, and the exit code; None for a defect, whose trace is needed."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, UserError):
        if isinstance(link, OSError) and link.errno in DISK:
            where = f" ({link.filename})" if link.filename else ""
            return f"{link.strerror}{where}; {DISK[link.errno]}", BAD_INPUT if link.errno in PLACE else DEFECT
        link = link.__cause__  # Hydra wraps what a reader or loader raises
    if link is not None:
        return " ".join(str(link).split()), BAD_INPUT
    # torch's own error for a GPU's memory has no module that is loaded yet; for the machine's it has no type.
    if isinstance(error, MemoryError) or any(
        said in f"{type(error).__name__}: {error}" for said in NO_MEMORY
    ):
        return f"not enough memory ({first_line(error)}); {MEMORY}", DEFECT
    if isinstance(error, (TypeError, ValueError)) and raised_in(error).startswith("hydra."):
        return f"{UNUSABLE}: {first_line(error)}", BAD_INPUT
    if raised_in(error).startswith("optuna.storages."):
        return STORAGE, BAD_INPUT
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        cause, place = error.__cause__, str(error).split()[-1]
        if isinstance(cause, TypeError) and raised_in(cause).startswith("hydra."):  # in the call itself
            return f"{first_line(cause)}; in {place} there is a setting too many or too few", BAD_INPUT
        return None  # something went wrong inside what was instantiated
    words = str(error).split()  # Hydra's own messages take several lines
    for plugin, extra in PLUGINS.items():
        if f"'{plugin}'" in words and importlib.util.find_spec(f"hydra_plugins.{extra[1]}") is None:
            return f"{plugin} is not installed: pip install 'bora[{extra[0]}]'", BAD_INPUT
    if isinstance(error.__cause__, OmegaConfBaseException):
        words += str(error.__cause__).split()
    return " ".join(words), BAD_INPUT


def main() -> None:
    """Run the command line."""
    # Hydra would end the process with code 1 itself; with this set, errors reach us.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        with leaving():
            set_aside()
            with again(sys.argv) as sys.argv:
                job()
    except Stopped as stopped:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one process speaks for all
            print("bora:", stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)


if __name__ == "__main__":
    # By its own name, not as __main__: a sweep's other processes import the job from there.
    from bora.commands.run import main as run

    run()
