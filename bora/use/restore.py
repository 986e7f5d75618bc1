"""Load a finished run as a model."""

import difflib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from bora.bayes.model import HierarchicalLoRA
from bora.config.schema import Config, Dtype
from bora.data.batches import Documents
from bora.data.pieces import Truncation
from bora.data.tokens import Tokens
from bora.errors import UserError
from bora.model.loading import backbone_sha256, load_backbone, tokenizer_sha256
from bora.runs.checkpoints import load_checkpoint
from bora.runs.directory import RunDirectory

log = logging.getLogger(__name__)
MAX_SHOWN = 30  # tasks named in an error


class Restored(NamedTuple):
    """A run's best epoch.

    Attributes:
        model: the model, in evaluation mode.
        tokenizer: the backbone's.
        cfg: the run's config.yaml, except for what the arguments of `restore` change.
        summary: the run's summary.json.
        directory: the run's files.
    """

    model: HierarchicalLoRA
    tokenizer: PreTrainedTokenizerBase
    cfg: Config
    summary: dict[str, Any]
    directory: RunDirectory

    @property
    def tokens(self) -> Tokens:
        """How the run turns text into tokens."""
        return Tokens.of(self.cfg.data, self.model.backbone.model, self.tokenizer)

    @property
    def temperature(self) -> float:
        """T of p(d | text), see `bora.train.authorship`; 1 if the run has none."""
        return self.summary.get("temperature") or 1.0

    def find_tasks(self, names: Iterable[str]) -> list[str]:
        """Find tasks by name, see `find_tasks`; party=left is a unit of a level above them."""
        return find_tasks(names, self.model.adapters.names)

    def documents(
        self, table: pd.DataFrame, units: Sequence[Sequence[int]] | None = None
    ) -> tuple[Documents, Truncation]:
        """Encode documents of the run's tasks.

        Args:
            table: columns task, text and those that prompts use.
            units: for each row of the table, its units' rows in the matrix of adapters; None for the task alone.
        """
        encoded, truncation = self.tokens.encode(table)
        number = {name: d for d, name in enumerate(self.model.adapters.task_names)}
        tasks, whose = [number[task] for task in table["task"]], [e.document for e in encoded]
        own = None if units is None else [units[i] for i in whose]
        return Documents(encoded, [tasks[i] for i in whose], units=own), truncation


def find_tasks(wanted: Iterable[str], names: Sequence[str]) -> list[str]:
    """Find tasks among all names by their whole names, or by a beginning that no other task has.

    Case matters only if whole names differ in nothing else.

    Raises:
        UserError: no task matches, or several do; the message lists those, or the closest names.
    """
    return [_find_task(name, names) for name in wanted]


def _find_task(wanted: str, names: Sequence[str]) -> str:
    low = wanted.casefold()
    for found in (
        [name for name in names if name == wanted],
        [name for name in names if name.casefold() == low],
        [name for name in names if name.casefold().startswith(low)],
    ):
        if len(found) == 1:
            if found[0].casefold() != low:
                log.warning("there is no task %s; using %s, which begins with it", wanted, found[0])
            return found[0]
        if found:
            more = f", … ({len(found)} in all)" if len(found) > MAX_SHOWN else ""
            raise UserError(f"{wanted!r} matches several tasks: {', '.join(found[:MAX_SHOWN])}{more}")
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    more = f", … ({len(names)} in all)" if len(names) > MAX_SHOWN else ""
    hint = f"did you mean {', '.join(close)}?" if close else f"it has {', '.join(names[:MAX_SHOWN])}{more}"
    raise UserError(f"the run has no task {wanted}; {hint}")


def restore(run: str | Path, device: str = "cpu", dtype: Dtype | None = None) -> Restored:
    """Load a finished run: its backbone from the config's source, its factors from best.ckpt.

    Args:
        device: cpu or cuda.
        dtype: dtype of the backbone; None for the one that the run was trained in.

    Raises:
        UserError: there is no finished run in that folder, its files are damaged, its backbone cannot be loaded, or
            there is no such device.
    """
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"device={device!r}: give cpu or cuda")
    if dtype not in (None, *get_args(Dtype)):
        raise UserError(f"dtype={dtype!r}: give {', '.join(get_args(Dtype))}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device here; choose the device cpu")
    directory = RunDirectory(Path(run).expanduser())
    summary, cfg = directory.summary(), directory.config()
    checkpoint = load_checkpoint(directory.best)
    cfg.model.dtype = dtype or summary["dtype"]
    if cfg.model.source == "hub" and "model_folder" in summary and not Path(cfg.model.path).expanduser().is_dir():
        cfg.model.path = summary["model_folder"]  # else a model of that name might be fetched from the hub
    pretrained = load_backbone(cfg.model, device.partition(":")[0], cfg.data.max_tokens)
    same_dtype = dtype in (None, summary["dtype"])
    if same_dtype and summary["backbone_sha256"] != backbone_sha256(pretrained.model):
        log.warning("the backbone's weights differ from those that %s was trained on", run)
    if summary.get("tokenizer_sha256") not in (None, tokenizer_sha256(pretrained.tokenizer)):  # older runs have none
        log.warning("the tokenizer differs from the one that %s was trained with, so its perplexities will, too", run)
    model = HierarchicalLoRA.from_hyperparameters(pretrained.model, checkpoint["hyper_parameters"])
    model.load_trained_state(checkpoint["state_dict"])
    return Restored(model.eval().to(device), pretrained.tokenizer, cfg, summary, directory)
