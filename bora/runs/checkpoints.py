"""Load checkpoints as tensors and plain values; never run code."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from bora.errors import UserError, first_line
from bora.lib.files import require_regular_file

FINGERPRINT = "fingerprint"  # key in a checkpoint: what decides its run's numbers, see `check_same_run`


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU.

    Raises:
        UserError: the file is missing, or is not a run's checkpoint.
    """
    try:
        with zipfile.ZipFile(require_regular_file(path)) as records:
            damaged = records.testzip()  # torch does not verify the checksums
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} does not match")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:  # torch's own message suggests running them
        raise UserError(
            f"{path} is not a readable checkpoint: it holds pickled objects, which could run any code"
        ) from error
    except (OSError, RuntimeError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{path} is not a readable checkpoint: {first_line(error)}") from error
    for key in ("hyper_parameters", "state_dict"):
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), dict):
            raise UserError(f"{path} is not a run's checkpoint: it has no {key}")
    return checkpoint


def load_own(path: Path) -> dict[str, Any]:
    """Load a checkpoint of the run that is being resumed; see `load_checkpoint`."""
    try:
        return load_checkpoint(path)
    except UserError as error:
        raise UserError(f"{error}; restart with resume=never") from error


def check_same_run(checkpoint: dict[str, Any], fingerprint: dict[str, Any], path: Path) -> None:
    """Raise a UserError if a checkpoint is from a run with other settings, documents, tokens or weights.

    Args:
        fingerprint: that of the run to resume: every setting, and hashes of its tokens and its backbone.
        path: the checkpoint's path.
    """
    theirs = checkpoint.get(FINGERPRINT, {})
    differing = [what for what, ours in fingerprint.items() if theirs.get(what) != ours]
    if differing:
        raise UserError(
            f"{path} is from a run with another {', '.join(differing)}; use the same as that run, choose another folder, "
            "or restart with resume=never"
        )
