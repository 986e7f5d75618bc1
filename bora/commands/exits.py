"""How a command ends: an error that the user can fix becomes a line or a few on standard error, and an exit code.

2: bad input. 1: a defect (with a traceback), a full disk or too little memory. 128 + N: stopped by signal N.
"""

import errno
import importlib.util
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from bora.errors import UserError, first_line, printable, raised_in
from bora.lib.machine import is_first_process
from bora.lib.stopping import Stopped, signal_sent_on

BAD_INPUT, DEFECT = 2, 1
# File system errors that another folder, or room on the disk, solves.
PATH_ERRNOS = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
PATH_ERRNOS |= {errno.ENOLCK, errno.EOPNOTSUPP, errno.ESTALE}  # no locks, such as on NFS

DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
# What conf/sweep asks Hydra for → the package that provides it.
PLUGINS = {
    "hydra/launcher/joblib": "hydra-joblib-launcher",
    "hydra/launcher/submitit_slurm": "hydra-submitit-launcher",
    "hydra/launcher/submitit_local": "hydra-submitit-launcher",
    "hydra/sweeper/optuna": "hydra-optuna-sweeper",
}


@contextmanager
def cli_errors(resume: Callable[[], str] = str) -> Iterator[None]:
    """Run a command inside the context; end the process with a line and an exit code if the user can fix its error.

    Args:
        resume: returns the command that resumes what was stopped, or an empty string.
    """
    logging.raiseExceptions = False  # or it reports lines that nobody reads: bora run | head
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without τ prints ? instead of failing
    try:
        yield
    except Stopped as stopped:
        _exit_stopped(stopped, resume())
    except KeyboardInterrupt:  # outside training, which has its own handlers
        print("bora: stopped by SIGINT", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # the reader is gone: bora report | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python reports it again at exit
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        # A launcher whose jobs were stopped raises its own error.
        if (signum := signal_sent_on()) is not None:
            _exit_stopped(Stopped(signum), resume())
        exit_for(error, resume())
        raise


def _exit_stopped(stopped: Stopped, resume: str) -> NoReturn:
    if is_first_process():
        print("bora:", stopped, file=sys.stderr)
        _print_resume(resume)
    sys.exit(stopped.exit_code)


def _print_resume(command: str) -> None:
    if command:
        print(f"bora: to resume: {command}", file=sys.stderr)


def exit_for(error: Exception, resume: str = "") -> None:
    """Print an error that the user can fix and end the process; return for a defect, whose traceback is needed.

    Args:
        resume: the command to resume a run that a full disk, or the end of another process, stopped.
    """
    found = describe_error(error)
    if found is None:
        return
    for line in found[0].splitlines():
        print("bora:", printable(line), file=sys.stderr)
    if _is_lost(error) or (isinstance(error, OSError) and found[1] == DEFECT):
        _print_resume(resume)
    sys.exit(found[1])


def _is_lost(error: Exception) -> bool:
    """Return whether torch.distributed, or gloo in a backward, lost contact with the run's other processes."""
    return isinstance(error, RuntimeError) and (
        raised_in(error).startswith("torch.distributed.") or "/gloo/" in first_line(error)
    )


def describe_error(error: Exception) -> tuple[str, int] | None:
    """Describe an error that the user can fix, with its exit code; None for a defect."""
    if isinstance(error, UserError):
        return str(error), BAD_INPUT
    if isinstance(error.__cause__, OSError) and isinstance(error, ValueError):  # logging's, on writing run.log
        error = error.__cause__
    if isinstance(error, OSError) and error.errno in PATH_ERRNOS | DISK_ERRNOS:
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in PATH_ERRNOS:
            return f"{error.strerror}{where}; choose a folder that can be written to", BAD_INPUT
        return f"{error.strerror}{where}; {'check' if error.errno == errno.EIO else 'make room on'} the disk", DEFECT
    if _is_lost(error):
        why = first_line(error).rpartition("] ")[2].partition(". ")[0]
        return f"lost contact with another process of the run ({why}); see that process's output", DEFECT
    # Only one of torch's two out-of-memory errors has its own type.
    if (
        isinstance(error, MemoryError)
        or "OutOfMemoryError" in type(error).__name__
        or "can't allocate memory" in str(error)
    ):
        fix = "give a smaller lora.rank, data.batch_size or data.max_tokens, or model.gradient_checkpointing=true"
        if "CUDA" in str(error):
            fix += ", or model.cuda_graphs=false"
        fix += "; bora doctor shows what a run needs"
        return f"not enough memory ({first_line(error)}); {fix}", DEFECT
    module = raised_in(error)
    if "No trials are completed" in str(error):
        return "no trial of the search has finished; see the lines above, or failed.json in each folder", BAD_INPUT
    if module.startswith("optuna.storages."):
        # The Optuna that Hydra's sweeper needs (< 3) never commits what it asks SQLAlchemy 2 to write.
        return (
            "hydra.sweeper.storage: Optuna cannot use it; leave it null, and rerun the command to repeat the search",
            BAD_INPUT,
        )
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, HydraException | OmegaConfBaseException):
        return _describe_hydra(error), BAD_INPUT
    if isinstance(error, TypeError | ValueError) and module.startswith("hydra."):
        return f"Invalid override: {first_line(error)}", BAD_INPUT
    return None


def _describe_hydra(error: Exception) -> str:
    """Put a Hydra error, which has several lines, on one."""
    words = str(error).partition("Config search path:")[0].split()
    for plugin, package in PLUGINS.items():
        if f"'{plugin}'" in words and importlib.util.find_spec(f"hydra_plugins.{package.replace('-', '_')}") is None:
            return f"{plugin} is not installed: pip install {package}"
    if error.__cause__ is not None:
        words += ["-", first_line(error.__cause__)]
    return " ".join(words)
