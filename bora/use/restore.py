"""A finished run as a model again: what every command that uses a run begins with."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from transformers import PreTrainedTokenizerBase

from bora.bayes.model import HierarchicalLoRA
from bora.config import Config, Dtype
from bora.data.tokens import Tokens
from bora.model.loading import backbone_sha256, load_backbone
from bora.runs.checkpoints import load_checkpoint
from bora.runs.directory import RunDirectory

log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A run's best epoch.

    Attributes:
        model: in evaluation mode, on the CPU.
        tokenizer: the backbone's.
        cfg: the run's config.yaml.
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
        return Tokens.of(self.cfg.data, self.tokenizer)

    @property
    def per_task(self) -> pd.DataFrame:
        """The run's per_task.csv."""
        return self.directory.per_task()


def restore(run: Path, accelerator: str = "cpu", dtype: Dtype | None = None) -> Restored:
    """Load a finished run: its backbone from where the config has it, its factors from best.ckpt.

    Args:
        run: the run directory.
        accelerator: where it will be used, which decides a dtype of auto.
        dtype: of the backbone, float32 or bfloat16; None for the one that the run was trained in.

    Raises:
        UserError: there is no finished run in that folder, its files are not whole, or its backbone cannot be loaded.
    """
    directory = RunDirectory(Path(run).expanduser())
    summary, cfg = directory.summary(), directory.config()
    checkpoint = load_checkpoint(directory.best)
    cfg.model.dtype = dtype or summary["dtype"]
    pretrained = load_backbone(cfg.model, accelerator, cfg.data.max_tokens)
    same_dtype = dtype in (None, summary["dtype"])
    if same_dtype and summary["backbone_sha256"] != backbone_sha256(pretrained.model):
        log.warning("the backbone's weights are not exactly those that %s was trained on", run)
    model = HierarchicalLoRA.from_hyperparameters(pretrained.model, checkpoint["hyper_parameters"])
    model.load_trained_state(checkpoint["state_dict"])
    return Restored(model.eval(), pretrained.tokenizer, cfg, summary, directory)
