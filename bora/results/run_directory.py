"""The run directory: the files that hold a run's config, documents and results.

The files are the source of truth. summary.json is written last and atomically: it is there if and
only if the run finished.
"""

import json
import logging
import math
import os
import platform
import shutil
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from bora.errors import InputError

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
CONFIG, DOCUMENTS, PER_TASK, SUMMARY = "config.yaml", "documents.csv", "per_task.csv", "summary.json"
# What was done before there was a key for it.
EARLIER = {
    "data.order": "shuffled",
    "data.prepend_bos": True,
    "data.score_padding": False,
    "init_from": None,
    "likelihood": "sum",
    "model.quantization": None,
    "prior.estimator": "dense",
}
METRICS, FAILED = "metrics.csv", "failed.json"


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or none: a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    partial.replace(path)


class RunDirectory:
    """One run's folder."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """The folder of best.ckpt and last.ckpt."""
        return self.path / "checkpoints"

    @property
    def resume_from(self) -> Path | None:
        """last.ckpt of an interrupted run, once the folder is claimed; None where there is none."""
        last = self.checkpoints / "last.ckpt"
        return last if last.is_file() else None

    def finished(self) -> dict[str, Any] | None:
        """The summary, if the run finished."""
        return self.summary() if (self.path / SUMMARY).is_file() else None

    def summary(self) -> dict[str, Any]:
        """summary.json as written, of a run that finished."""
        return json.loads((self.path / SUMMARY).read_text("utf-8"))

    def per_task(self) -> pd.DataFrame:
        """per_task.csv as written."""
        return pd.read_csv(self.path / PER_TASK, dtype={"task": str}, keep_default_na=False)

    def claim(self, cfg: DictConfig, given: Collection[str] = ()) -> dict[str, Any] | None:
        """Take the folder for this run: the summary if the same run is finished here already.

        What an interrupted run left here is kept if it had the same config, else removed.

        Args:
            given: keys that were set on the command line.

        Raises:
            InputError: the folder holds a finished run with another config.
        """
        summary = self.finished()
        (self.path / FAILED).unlink(missing_ok=True)
        if summary is not None:
            differing = self.differences(cfg, given)
            if differing:
                raise InputError(
                    f"{self.path} holds a finished run with other settings ({', '.join(differing)}); "
                    "choose another folder with hydra.run.dir=…, or in a sweep name=… or hydra.sweep.dir=…"
                )
            return summary
        self.path.mkdir(parents=True, exist_ok=True)
        if self.resume_from is not None:
            differing = self.differences(cfg, given) if (self.path / CONFIG).is_file() else [CONFIG]
            if differing:
                log.info("the interrupted run here had other settings (%s): begun anew", ", ".join(differing))
                shutil.rmtree(self.checkpoints)
            else:
                log.info("going on from %s", self.resume_from)
        if self.resume_from is None:
            (self.path / METRICS).unlink(missing_ok=True)
        write_atomically(self.path / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
        return None

    def differences(self, cfg: DictConfig, given: Collection[str] = ()) -> list[str]:
        """Keys whose value in config.yaml is not cfg's.

        A key that config.yaml does not have, and EARLIER does not know, differs only if it is among the keys
        that are `given`.
        """
        theirs = read_config(self.path / CONFIG)
        ours = flat(OmegaConf.to_container(cfg, resolve=True))
        known = theirs.keys() | (ours.keys() & set(given))
        return sorted(k for k in known if theirs.get(k) != ours.get(k))

    def write_documents(self, documents: pd.DataFrame) -> None:
        """documents.csv: one row a document kept."""
        write_atomically(self.path / DOCUMENTS, documents[DOCUMENT_COLUMNS].to_csv(index=False))

    def write_per_task(self, per_task: pd.DataFrame) -> None:
        """per_task.csv: one row a task, in the order of selection."""
        columns = PER_TASK_COLUMNS + [c for c in per_task.columns if c not in PER_TASK_COLUMNS]
        write_atomically(self.path / PER_TASK, per_task[columns].to_csv(index=False))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """summary.json; the last file of a run. An infinite τ is written as "inf"."""
        self._write_json(SUMMARY, summary)

    def write_failure(self, failure: dict[str, Any]) -> None:
        """failed.json: why a sweep's job failed, until the next attempt; see `failure`."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_json(FAILED, failure)

    def failure(self) -> dict[str, Any]:
        """failed.json as written: error (one line) and exit_code of a failed job."""
        return json.loads((self.path / FAILED).read_text("utf-8"))

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        text = json.dumps(json_safe(value), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self.path / name, text + "\n")


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


def read_config(file: Path) -> dict[str, Any]:
    """A config.yaml, flat: {"prior.penalty": "gaussian", …}; what it is too old to say is filled in."""
    return EARLIER | flat(OmegaConf.to_container(OmegaConf.load(file), resolve=True))


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, its keys joined by dots; lists are values."""
    if isinstance(node, dict):
        return {k: v for key, child in node.items() for k, v in flat(child, f"{prefix}{key}.").items()}
    return {prefix[:-1]: node}
