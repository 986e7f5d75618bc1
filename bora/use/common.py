"""What the commands that use a finished run share: where it is loaded, and where they write."""

import argparse
import difflib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from bora.config import Dtype
from bora.errors import UserError, first_line
from bora.model.pretrained import DTYPES
from bora.use.restore import Restored, restore

DEVICES = ("cpu", "cuda")


def run_parser(command: str, description: str) -> argparse.ArgumentParser:
    """A parser that knows RUN, --device and --dtype."""
    parser = argparse.ArgumentParser(prog=f"bora {command}", description=description)
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run's folder")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where it is computed (cpu)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="of the backbone (the run's own)")
    return parser


def destination(out: Path) -> Path:
    """The folder to write, as an absolute path.

    Raises:
        UserError: there is something in it.
    """
    out = out.expanduser().resolve()
    try:
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"{out} is not empty; give a folder that is, or a new one")
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file; give a folder that is empty, or a new one")
    except OSError as error:
        raise UserError(f"{out} cannot be used: {first_line(error)}") from error
    return out


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that gets its name once it is complete; nothing is left of one that is not.

    Raises:
        UserError: the disk refuses it.
    """
    partial = out.with_name(f".bora.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():  # empty, or this is refused
            out.rmdir()
        partial.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out} cannot be written: {first_line(error)}") from error
    finally:
        if partial.exists():
            shutil.rmtree(partial)


def restore_on(run: Path, device: str = "cpu", dtype: Dtype | None = None) -> Restored:
    """A finished run, loaded and moved to a device.

    Args:
        run, dtype: see `restore`.
        device: one of DEVICES.

    Raises:
        UserError: there is no such device, or the run cannot be loaded.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; choose --device cpu")
    restored = restore(run, device, dtype)
    restored.model.to(device)
    return restored


def check_tasks(restored: Restored, tasks: Iterable[str]) -> None:
    """
    Raises:
        UserError: the run has no such task; with the names that are near to it.
    """
    names = restored.model.adapters.task_names
    for task in tasks:
        if task not in names:
            close = difflib.get_close_matches(task, names, n=3, cutoff=0.5)
            rest = f", … ({len(names)} in all)" if len(names) > 30 else ""
            there = f"near to it: {', '.join(close)}" if close else f"it has {', '.join(names[:30])}{rest}"
            raise UserError(f"--task {task}: the run has no such task; {there}")
