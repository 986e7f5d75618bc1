"""A sweep's folder: read a row for each finished run, and record and read why the others failed."""

import logging
import math
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from bora.errors import UserError
from bora.lib.names import format_tau
from bora.runs.directory import CONFIG, FAILED, SUMMARY, FolderInUse, RunDirectory, choosing_perplexity
from bora.runs.replay import key_of, read_overrides

log = logging.getLogger(__name__)

FIGURES = ("tau", "seed", "val_perplexity", "test_perplexity", "best_epoch")


def finished_runs(folder: Path) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Read the finished runs at or below a folder, at any depth.

    Returns:
        A table with a row for each run: FIGURES, with NaN for a learned τ; `tokens_of`, equal for runs on the same
        tokens; `run`, its path in the folder; and what else the runs' overrides vary, as text. The columns that
        distinguish settings: tau, and those that vary. A line for each run that is not readable.
    """
    rows, overrides, unreadable = [], [], []
    for file in sorted(folder.glob(f"**/{SUMMARY}")):
        if not (file.parent / CONFIG).is_file():
            continue  # an evaluation
        try:
            summary = RunDirectory(file.parent).summary()
            if "adapted_from" in summary:
                continue  # from bora adapt: nothing was held out
            given = {key_of(word): word.partition("=")[2] for word in read_overrides(file.parent)}
            row = {key: summary[key] for key in FIGURES} | {"val_perplexity": choosing_perplexity(summary)}
        except (UserError, KeyError) as error:
            unreadable.append(str(error) if isinstance(error, UserError) else f"{file} lacks {error}")
            continue
        if "learned" in summary:
            row["tau"] = math.nan
        elif levels := summary.get("levels"):  # the override has their τ after the tasks'
            given["tau of levels"] = ", ".join(f"{name} {format_tau(tau)}" for name, tau in levels.items())
        row["tokens_of"] = f"{summary.get('data_sha256')} {summary.get('n_tokens')}"
        rows.append(row | {"run": file.parent.relative_to(folder).as_posix()})
        # These differ if a table or a tokenizer was changed meanwhile.
        given |= {"documents": summary.get("data_sha256", "")[:6], "tokens": summary.get("n_tokens", "")}
        overrides.append(given)
    table = pd.DataFrame(overrides, index=range(len(rows)), dtype=str).fillna("")
    varied = [str(key) for key in table if table[key].nunique() > 1 and key not in ("tau", "seed")]
    return pd.DataFrame(rows).join(table[varied]), ["tau", *varied], unreadable


def failed_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Read each failed job's file at or below a folder: its path there → its content, and when it was written."""
    found = {}
    for file in sorted(folder.glob("**/failed*.json")):
        try:
            failure = RunDirectory(file.parent).failure(file.name)
        except UserError as error:
            failure = {"error": str(error), "exit_code": 2}
        found[file.relative_to(folder).as_posix()] = failure | {"written": file.stat().st_mtime_ns}
    return found


def record_failure(error: Exception, folder: Path, described: tuple[str, int] | None) -> None:
    """Write failed.json into a sweep job's folder.

    Args:
        described: the error in one line, and its exit code; None for a bug.
    """
    if described is None:
        log.error("%s failed", folder.name, exc_info=error)
        described = f"{type(error).__name__}: {' '.join(str(error).split())}", 1
    else:
        log.error("%s failed: %s", folder.name, described[0])
    time = datetime.now().astimezone().isoformat()
    # If another process is working there, only that one may write and remove failed.json.
    name = f"failed-{os.getpid()}.json" if isinstance(error, FolderInUse) else FAILED
    RunDirectory(folder).write_failure({"error": described[0], "exit_code": described[1], "time": time}, name)
