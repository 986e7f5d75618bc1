"""The run directory: the files that hold a run's config, documents and results.

The files are the source of truth. summary.json is written last and atomically: it is there if and only if the run
finished. SHA256SUMS, written just before it, lets `sha256sum -c` and `bora report --verify` find later changes.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from bora.config.parse import parse
from bora.config.schema import Config, flatten
from bora.errors import UserError, printable
from bora.lib.files import PARTIAL, remove_folder, write_text_atomically
from bora.lib.machine import is_first_process
from bora.runs.older import newer_settings
from bora.runs.values import (
    hash_file,
    hash_text,
    read_json,
    read_yaml,
    readable,
    to_json,
    to_yaml,
    with_floats,
    write_csv,
    write_json,
)

log = logging.getLogger(__name__)

PER_TASK_COLUMNS = "task n_train n_val n_test train_tokens test_tokens".split()
PER_TASK_COLUMNS += "val_nll val_perplexity test_nll test_perplexity distance".split()
DOCUMENT_COLUMNS = ["row", "task", "split", "n_tokens", "n_scored"]
CONFIG, OVERRIDES = "config.yaml", ".hydra/overrides.yaml"
DOCUMENTS, PER_TASK, METRICS, SUMMARY = "documents.csv", "per_task.csv", "metrics.csv", "summary.json"
UNITS, BY_TASK = "units.csv", "validation_by_task.csv"
EVALUATIONS = "evaluation"  # folder of evaluations, one subfolder each
VARIANCE = "variance"  # folder of bora variance's results, and its files
SHARES, INFERRED, EVIDENCE = "shares.csv", "tau.csv", "evidence.csv"
TRAINED_ON = "trained_on.txt"
SUMS, FAILED, LOCK = "SHA256SUMS", "failed.json", ".lock"
RUN_FILES = (CONFIG, METRICS, "checkpoints")  # files that a run has and an evaluation does not
WRITTEN = (CONFIG, DOCUMENTS, TRAINED_ON, METRICS, BY_TASK, UNITS, PER_TASK)  # besides checkpoints and the last two
# Settings that decide how a run resumes, not its results.
HOW_IT_RESUMES = {"resume", "checkpoint_minutes"}


class FolderInUse(UserError):
    """Another process is working in the folder."""


class RunDirectory:
    """A run's folder. Methods that read a file raise a UserError if it is missing or not readable.

    Attributes:
        checkpoints: the folder of best.ckpt and last.ckpt.
        best: best.ckpt, the epoch that validation chose.
        last: last.ckpt, from which an interrupted run resumes.
    """

    def __init__(self, path: Path):
        self.path, self.checkpoints = path, path / "checkpoints"
        self.best, self.last = self.checkpoints / "best.ckpt", self.checkpoints / "last.ckpt"

    @property
    def is_finished(self) -> bool:
        return (self.path / SUMMARY).is_file()

    @property
    def has_begun(self) -> bool:
        """Whether training has left a checkpoint or a row of metrics.csv."""
        metrics = self.path / METRICS
        return self.checkpoints.exists() or (metrics.is_file() and metrics.read_text("utf-8").count("\n") > 1)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other processes. The system releases the lock if this process dies.

        An empty folder is removed again if the input is refused before training begins.

        Raises:
            FolderInUse: another process is working in the folder.
        """
        if not is_first_process():
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        new = not any(file.is_dir() or file.stat().st_size for file in self.path.iterdir())  # Hydra has created run.log
        try:
            lock = FileLock(self.path / LOCK).acquire(timeout=0)
        except Timeout as error:
            raise FolderInUse(
                f"another process is working in {self.path}; wait for it, or choose another folder with hydra.run.dir=…"
            ) from error
        with lock:
            try:
                yield
            except UserError:
                if new and not self.has_begun:
                    remove_folder(self.path)
                raise

    def refuse_other_settings(self, config: Config) -> None:
        """Raise a UserError if the folder holds a finished run with other settings."""
        if self.is_finished and (differing := self._differences(config)):
            raise UserError(
                f"{self.path} holds a finished run with other settings ({', '.join(differing)}); choose another "
                "folder with hydra.run.dir=…, in a sweep name=… or hydra.sweep.dir=…, in Python output=…, "
                f"or continue from this run with init_from={self.path}"
            )

    def claim(self, config: Config, overrides: Sequence[str] = ()) -> bool:
        """Claim the folder for a run.

        An interrupted run with the same settings is kept and resumed, unless config.resume is never.

        Args:
            overrides: the overrides as typed, for `bora run --again`.

        Returns:
            Whether this same run has already finished here.

        Raises:
            UserError: the folder holds a run with other settings, or files of other origin that this one would overwrite.
        """
        self.refuse_other_settings(config)
        if self.is_finished:
            for failure in self.path.glob("failed*.json") if is_first_process() else ():
                failure.unlink(missing_ok=True)  # from an attempt while another process was working here
            return True
        if not is_first_process():
            return False
        ours = (self.path / OVERRIDES).is_file() or ((self.path / CONFIG).is_file() and self.last.is_file())
        if not ours and (theirs := [f for f in (*WRITTEN, SUMS, "checkpoints") if (self.path / f).exists()]):
            raise UserError(
                f"{self.path} is not a run's folder and holds {', '.join(theirs)}, which the run would overwrite; choose "
                "another folder with hydra.run.dir=…, in a sweep hydra.sweep.dir=…, in Python output=…"
            )
        (self.path / FAILED).unlink(missing_ok=True)
        for partial in (*self.path.glob(f".*{PARTIAL}"), *self.checkpoints.glob(f".*{PARTIAL}")):
            partial.unlink()  # left by a process that was killed while writing
        if self.last.is_file() and config.resume == "never":
            log.info("resume=never: removing the interrupted run")
            shutil.rmtree(self.checkpoints)
        if self.last.is_file():
            if differing := self._differences(config):
                raise UserError(
                    f"{self.path} holds an interrupted run with other settings ({', '.join(differing)}); use the "
                    "same, choose another folder, or restart with resume=never"
                )
            log.info("resuming from %s", self.last)
        else:
            (self.path / METRICS).unlink(missing_ok=True)
        (self.path / OVERRIDES).parent.mkdir(exist_ok=True)
        write_text_atomically(self.path / OVERRIDES, to_yaml(list(overrides)))
        write_text_atomically(self.path / CONFIG, to_yaml(config.model_dump()))
        return False

    def _differences(self, config: Config) -> list[str]:
        """List the settings whose values differ from those in config.yaml."""
        theirs, ours = flatten(self._read_config()), settings(config)
        return sorted(k for k in (theirs.keys() | ours.keys()) - HOW_IT_RESUMES if theirs.get(k) != ours.get(k))

    def config(self) -> Config:
        """Read config.yaml; raise a UserError also if it is not valid for this version."""
        values = self._read_config()
        try:
            return parse(values)
        except UserError as error:
            raise UserError(f"{self.path / CONFIG}: {error}") from error

    def _read_config(self) -> dict[str, Any]:
        """Read config.yaml, adding the settings that are newer than the run."""
        values = read_yaml(self.path / CONFIG)
        if not isinstance(values, dict):
            raise UserError(f"{self.path / CONFIG} holds no settings")
        # Only a finished run's SHA256SUMS proves that missing settings were never in the file.
        if (self.path / SUMS).is_file() and self._sums().get(CONFIG) == hash_file(self.path / CONFIG):
            for key, value in newer_settings(flatten(values)).items():
                *groups, name = key.split(".")
                reduce(lambda group, key: group.setdefault(key, {}), groups, values)[name] = value
        return values

    def summary(self) -> dict[str, Any]:
        """Read summary.json; infinite and undefined numbers are floats."""
        if not self.is_finished:
            raise UserError(f"{self.path} holds no finished run (no {SUMMARY})")
        return with_floats(read_json(self.path / SUMMARY))

    def per_task(self) -> pd.DataFrame:
        """Read per_task.csv."""
        with readable(self.path / PER_TASK) as file:
            per_task = pd.read_csv(file, dtype={"task": str}, keep_default_na=False)
            for column in [*PER_TASK_COLUMNS[1:], *per_task.columns.drop(PER_TASK_COLUMNS, errors="ignore")]:
                per_task[column] = pd.to_numeric(per_task[column])
            return per_task

    def validations(self) -> pd.DataFrame:
        """Read from metrics.csv the validations during training; epoch and step are counted from 1.

        train/nll is the mean over the epoch's logged steps, if there are any.
        """
        with readable(self.path / METRICS) as file:
            rows = pd.read_csv(file)
            # The rows at the last step were written after training, for the epoch that was kept.
            found = rows[rows["val/nll"].notna() & (rows["step"] < rows["step"].max())]
            if "train/nll" in rows:
                found = found.assign(**{"train/nll": found["epoch"].map(rows.groupby("epoch")["train/nll"].mean())})
            return found.assign(epoch=found["epoch"] + 1, step=found["step"] + 1)

    def documents(self) -> pd.DataFrame:
        """Read documents.csv."""
        with readable(self.path / DOCUMENTS) as file:
            return pd.read_csv(file, dtype={"task": str}, keep_default_na=False)

    def write_documents(self, documents: pd.DataFrame) -> None:
        """Write documents.csv: one row for each document kept; if some are in pieces, one for each numbered piece."""
        columns = [*DOCUMENT_COLUMNS, *(["piece"] if documents["piece"].any() else [])]
        write_csv(self.path / DOCUMENTS, documents[columns])

    def write_trained_on(self, texts: Iterable[str], more: Iterable[str] = ()) -> None:
        """Write trained_on.txt: the hash of each text that the model was fitted to or chosen by, one per line, sorted.

        Args:
            texts: the training and validation texts.
            more: hashes of another run's texts, to include.
        """
        hashes = {hash_text(text) for text in texts}.union(more)
        write_text_atomically(self.path / TRAINED_ON, "".join(f"{h}\n" for h in sorted(hashes)))

    def trained_on(self) -> set[str] | None:
        """Read trained_on.txt; None if it is missing."""
        if not (self.path / TRAINED_ON).exists():
            return None
        with readable(self.path / TRAINED_ON) as file:
            return set(file.read_text("utf-8").split())

    def write_per_task(self, per_task: pd.DataFrame) -> None:
        """Write per_task.csv: one row for each task, in the order of selection."""
        columns = PER_TASK_COLUMNS + [c for c in per_task.columns if c not in PER_TASK_COLUMNS]
        write_csv(self.path / PER_TASK, per_task[columns])

    def write_by_task(self, validations: pd.DataFrame) -> None:
        """Write validation_by_task.csv: one row for each validation and task."""
        write_csv(self.path / BY_TASK, validations)

    def by_task(self) -> pd.DataFrame:
        """Read validation_by_task.csv."""
        with readable(self.path / BY_TASK) as file:
            return pd.read_csv(file, dtype={"task": str}, keep_default_na=False, na_values={"val_perplexity": ""})

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write SHA256SUMS and then summary.json, the last file of a run."""
        files = [*WRITTEN, OVERRIDES, *(f"checkpoints/{c.name}" for c in (self.best, self.last))]
        sums = {f: hash_file(self.path / f) for f in files if (self.path / f).is_file()}
        text = to_json(summary)
        sums[SUMMARY] = hashlib.sha256(text.encode()).hexdigest()
        write_text_atomically(self.path / SUMS, "".join(f"{sums[f]}  {f}\n" for f in sorted(sums)))
        write_text_atomically(self.path / SUMMARY, text)

    def verify(self) -> list[str]:
        """List the files that are missing or have changed since the run wrote them, according to SHA256SUMS."""
        return [
            f for f, sum in self._sums().items() if not (self.path / f).is_file() or hash_file(self.path / f) != sum
        ]

    def _sums(self) -> dict[str, str]:
        """Read SHA256SUMS: file → sum."""
        with readable(self.path / SUMS) as file:
            lines = (line.split("  ", 1) for line in file.read_text("utf-8").splitlines())
            return {name: sum for sum, name in lines}

    def write_failure(self, failure: dict[str, Any], name: str = FAILED) -> None:
        """Write failed.json: why a sweep's job failed. The next attempt removes it."""
        self.path.mkdir(parents=True, exist_ok=True)  # the folder of a refused job was removed
        write_json(self.path / name, failure)

    def failure(self, name: str = FAILED) -> dict[str, Any]:
        """Read failed.json: `error`, a text, and `exit_code`."""
        found = read_json(self.path / name)
        return {"error": printable(str(found.get("error"))), "exit_code": 2 if found.get("exit_code") == 2 else 1}


def choosing_perplexity(summary: dict[str, Any]) -> float:
    """Return the validation perplexity that chooses τ; runs with the published code's likelihood have their own."""
    return summary.get("val_perplexity_by_batch", summary["val_perplexity"])


def settings(config: Config) -> dict[str, Any]:
    """Return the settings that decide a run's numbers, flat: {"prior.penalty": "gaussian", …}."""
    return {k: v for k, v in flatten(config.model_dump()).items() if k not in HOW_IT_RESUMES}
