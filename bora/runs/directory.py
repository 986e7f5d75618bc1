"""The run directory: the files that hold a run's config, documents and results.

The files are the source of truth. summary.json is written last and atomically: it is there if and
only if the run finished.
"""

import hashlib
import json
import logging
import math
import platform
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from omegaconf import DictConfig

from bora.config import flat, plain
from bora.errors import UserError, first_line, printable
from bora.lib.files import PARTIAL, require_regular_file, write_text_atomically
from bora.lib.names import has_control
from bora.lib.processes import is_first
from bora.lib.redaction import as_yaml, redacted
from bora.runs.replay import CONFIG, read_config, with_earlier

log = logging.getLogger(__name__)

PER_TASK_COLUMNS = [
    "task",
    "n_train",
    "n_val",
    "n_test",
    "train_tokens",
    "test_tokens",
    "val_nll",
    "val_perplexity",
    "test_nll",
    "test_perplexity",
    "distance",
]
DOCUMENT_COLUMNS = ["row", "task", "split", "n_tokens", "n_scored"]
# Libraries whose version can change a number.
LIBRARIES = (
    "bora",
    "torch",
    "lightning",
    "transformers",
    "tokenizers",
    "hydra-core",
    "torchmetrics",
    "pandas",
    "wandb",
)
DOCUMENTS, PER_TASK, SUMMARY = "documents.csv", "per_task.csv", "summary.json"
METRICS, FAILED, LOCK, HYDRA = "metrics.csv", "failed.json", ".lock", ".hydra"
# Keys of a trained run's summary that are shown or compared: numbers, and texts.
RESULTS = (
    "tau",
    "seed",
    "lr",
    "val_perplexity",
    "val_perplexity_macro",
    "test_perplexity",
    "test_perplexity_macro",
    "base_test_perplexity",
    "best_epoch",
)
NAMES = ("data", "data_sha256", "model")
SHA256 = "sha256"  # in the summary: of the rest of it
# Settings that say where something lies, not what it is: they may be put right in a finished run that was moved.
PLACES = ("data.path", "data.reader.", "model.path", "model.loader.", "init_from", "logger.")
SECONDS = ("seconds", "train_tokens_per_second")  # the summary's figures that are another each time
DAMAGED = "it is damaged; take another copy, or run again in another folder"
# What decides how a run goes on, not what comes of it.
HOW_IT_RUNS = {"resume", "checkpoint_minutes"}


class RunDirectory:
    """One run's folder."""

    def __init__(self, path: Path, hydra_files: Mapping[str, str] | None = None):
        """hydra_files: what goes into .hydra/ once the folder is this run's, file → text."""
        self.path = path
        self.hydra_files = hydra_files or {}

    @property
    def checkpoints(self) -> Path:
        """The folder of best.ckpt and last.ckpt."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """last.ckpt, from which an interrupted run goes on."""
        return self.checkpoints / "last.ckpt"

    @property
    def resume_from(self) -> Path | None:
        """last.ckpt of an interrupted run, once the folder is claimed; None where there is none."""
        return self.last if self.last.is_file() else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Within: no other process can work here. The system lets go of the lock when a process dies.

        Raises:
            UserError: another process works here.
        """
        if not is_first():
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"another process is working in {self.path}; wait for it, or choose another folder"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def finished(self) -> dict[str, Any] | None:
        """The summary, if the run finished."""
        return self.summary() if (self.path / SUMMARY).is_file() else None

    def summary(self) -> dict[str, Any]:
        """summary.json as written, of a run that finished.

        Raises:
            UserError: it is damaged.
        """
        summary = self._read_json(SUMMARY)
        if SHA256 in summary and summary[SHA256] != _sha256(summary):  # runs of before do not have it
            raise UserError(f"{self.path / SUMMARY} is not what the run wrote; {DAMAGED}")
        return summary

    def summary_with(self, numbers: Collection[str], texts: Collection[str]) -> dict[str, Any]:
        """The same, which has these keys.

        Raises:
            UserError: it is damaged, or one is missing or of another type.
        """
        summary = self.summary()
        for key in (*numbers, *texts):
            if key not in summary:
                raise UserError(f"{self.path / SUMMARY} has no {key}; {DAMAGED}")
            value = summary[key]
            if key in texts and _is_number(value):  # a name given as a number
                value = summary[key] = str(value)
            if not (_is_number(value) if key in numbers else isinstance(value, str)):
                kind = "number" if key in numbers else "text"
                raise UserError(f"{self.path / SUMMARY}: {key} is no {kind}; {DAMAGED}")
        if "tau" in numbers and not float(summary["tau"]) >= 0:
            raise UserError(f"{self.path / SUMMARY}: tau is {summary['tau']}; {DAMAGED}")
        return summary

    def config(self) -> DictConfig:
        """config.yaml of a run that finished, as written.

        Raises:
            UserError: it is damaged, or changed since (but for PLACES).
        """
        found = read_config(self.path / CONFIG)
        ours = _config_sha256(found)
        if self.summary().get("config_sha256", ours) != ours:  # runs of before do not have it
            raise UserError(f"{self.path / CONFIG} is not what the run wrote; {DAMAGED}")
        return found

    def per_task(self) -> pd.DataFrame:
        """per_task.csv as written.

        Raises:
            UserError: it is damaged.
        """
        with readable(self.path / PER_TASK) as file:
            per_task = pd.read_csv(file, dtype={"task": str}, keep_default_na=False)
            lacking = [c for c in PER_TASK_COLUMNS if c not in per_task]
            if lacking:
                raise ValueError(f"it has no column {lacking[0]}")
            for column in PER_TASK_COLUMNS[1:]:
                per_task[column] = pd.to_numeric(per_task[column])
            if per_task["task"].map(has_control).any():  # a terminal would obey them
                raise ValueError("it names a task with control characters")
            return per_task

    def results(self) -> tuple[dict[str, Any], pd.DataFrame]:
        """The summary and per_task.csv of a run that finished.

        Raises:
            UserError: one of them is damaged.
        """
        summary = self.summary_with(RESULTS, NAMES)
        with readable(self.path / PER_TASK):
            known = summary.get("per_task_sha256")  # which runs of before do not have
            if known is not None and known != self._per_task_sha256():
                raise ValueError("it is not what the run wrote")
        return summary, self.per_task()

    def _per_task_sha256(self) -> str:
        return hashlib.sha256((self.path / PER_TASK).read_bytes()).hexdigest()

    def claim(self, cfg: DictConfig, given: Collection[str] = ()) -> dict[str, Any] | None:
        """Take the folder for this run: the summary if the same run is finished here already.

        What an interrupted run left here is kept, to go on from, unless cfg.resume is never.

        Args:
            given: keys that were set on the command line.

        Raises:
            UserError: the folder holds a run with another config, finished or to be gone on with.
        """
        summary = self.finished()
        if summary is not None:
            differing = self.differences(cfg, given)
            if differing:
                raise UserError(
                    f"{self.path} holds a finished run with other settings ({', '.join(differing)}); "
                    "choose another folder with hydra.run.dir=…, or in a sweep name=… or hydra.sweep.dir=…"
                )
            return summary
        if not is_first():
            return None
        (self.path / FAILED).unlink(missing_ok=True)
        for partial in (*self.path.glob(f".*{PARTIAL}"), *self.checkpoints.glob(f".*{PARTIAL}")):
            partial.unlink()  # of a process that was killed while it wrote
        if self.resume_from is not None and cfg.resume == "never":
            log.info("resume=never: what the interrupted run left here is removed")
            shutil.rmtree(self.checkpoints)
        if self.resume_from is not None:
            differing = self.differences(cfg, given) if (self.path / CONFIG).is_file() else [CONFIG]
            if differing:
                raise UserError(
                    f"{self.path} holds an interrupted run with other settings ({', '.join(differing)}); give "
                    "those, choose another folder, or begin anew with resume=never"
                )
            log.info("going on from %s", self.resume_from)
        else:
            (self.path / METRICS).unlink(missing_ok=True)
        write_text_atomically(self.path / CONFIG, as_yaml(redacted(plain(cfg))))
        for file, text in self.hydra_files.items():
            (self.path / HYDRA).mkdir(exist_ok=True)
            write_text_atomically(self.path / HYDRA / file, text)
        return None

    def differences(self, cfg: DictConfig, given: Collection[str] = ()) -> list[str]:
        """Keys whose value in config.yaml is not cfg's.

        A key that config.yaml does not have, and EARLIER does not know, differs only if it is among the keys that
        are `given`. The keys in HOW_IT_RUNS never differ.
        """
        theirs = redacted(with_earlier(read_config(self.path / CONFIG)))
        ours = settings(cfg)
        known = (theirs.keys() - HOW_IT_RUNS) | (ours.keys() & set(given))
        return sorted(k for k in known if theirs.get(k) != ours.get(k))

    def write_documents(self, documents: pd.DataFrame) -> None:
        """documents.csv: one row a document kept."""
        write_text_atomically(self.path / DOCUMENTS, documents[DOCUMENT_COLUMNS].to_csv(index=False))

    def write_per_task(self, per_task: pd.DataFrame) -> None:
        """per_task.csv: one row a task, in the order of selection."""
        columns = PER_TASK_COLUMNS + [c for c in per_task.columns if c not in PER_TASK_COLUMNS]
        write_text_atomically(self.path / PER_TASK, per_task[columns].to_csv(index=False))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """summary.json; the last file of a run, with hashes of itself and of others. An infinite τ is "inf"."""
        if (self.path / CONFIG).is_file():
            config = read_config(self.path / CONFIG)
            summary = summary | {"config_sha256": _config_sha256(config)}
        if (self.path / PER_TASK).is_file():  # where texts without labels were evaluated there is none
            summary = summary | {"per_task_sha256": self._per_task_sha256()}
        self._write_json(SUMMARY, summary | {SHA256: _sha256(summary)})
        (self.path / FAILED).unlink(
            missing_ok=True
        )  # of a sweep's job that was refused while this run was at work

    def write_failure(self, failure: dict[str, Any]) -> None:
        """failed.json: why a sweep's job failed, until the next attempt; see `failure`."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_json(FAILED, failure)

    def failure(self) -> dict[str, Any]:
        """failed.json as written: error (one line) and exit_code of a failed job."""
        found = self._read_json(FAILED)
        with readable(self.path / FAILED):
            code = found.get("exit_code", 1)
            if not isinstance(code, int):
                raise ValueError("exit_code is no whole number")
            return found | {"error": printable(str(found.get("error"))), "exit_code": code}

    def _read_json(self, name: str) -> dict[str, Any]:
        with readable(self.path / name) as file:
            found = json.loads(file.read_text("utf-8"))
            if not isinstance(found, dict):
                raise ValueError("it is no JSON object")
            return found

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        text = json.dumps(json_safe(value), indent=2, ensure_ascii=False, allow_nan=False)
        write_text_atomically(self.path / name, text + "\n")


@contextmanager
def readable(file: Path) -> Iterator[Path]:
    """Within: a run's file is read.

    Raises:
        UserError: it cannot be.
    """
    try:
        yield require_regular_file(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable: {first_line(error)}; {DAMAGED}") from error


def settings(cfg: DictConfig) -> dict[str, Any]:
    """What decides a run's numbers, flat and without secrets: {"prior.penalty": "gaussian", …}."""
    return {key: value for key, value in flat(redacted(plain(cfg))).items() if key not in HOW_IT_RUNS}


def _is_number(value: Any) -> bool:
    return value in ("inf", "-inf", "nan") or (
        isinstance(value, (int, float)) and not isinstance(value, bool)
    )


def _sha256(summary: Mapping[str, Any]) -> str:
    """Of a summary as JSON, but for itself and for what is another each time."""
    kept = {key: value for key, value in summary.items() if key not in (SHA256, *SECONDS)}
    return hashlib.sha256(json.dumps(json_safe(kept), sort_keys=True).encode()).hexdigest()


def _config_sha256(cfg: DictConfig) -> str:
    # Not redacted again: what stands in the file is, and whoever reads it may have other secrets.
    kept = {k: v for k, v in flat(plain(cfg)).items() if k not in HOW_IT_RUNS and not k.startswith(PLACES)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Python's and the libraries' versions."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def json_safe(value: Any) -> Any:
    """Infinite and undefined numbers as strings, which strict JSON has no other form for."""
    if isinstance(value, dict):
        return {k: json_safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
