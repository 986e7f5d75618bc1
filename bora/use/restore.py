"""A finished run as a model again: what every command that uses a run begins with."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import PreTrainedTokenizerBase

from bora.bayes.model import HierarchicalLoRA
from bora.config import flat
from bora.errors import UserError, first_line
from bora.model.loading import backbone_sha256, load_backbone
from bora.runs.directory import RunDirectory
from bora.runs.replay import CONFIG, EARLIER, check_calls
from bora.train.checkpoint import load_best

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
    cfg: DictConfig
    summary: dict[str, Any]
    directory: RunDirectory

    @property
    def per_task(self) -> pd.DataFrame:
        """The run's per_task.csv."""
        return self.directory.per_task()


def restore(run: Path, accelerator: str = "cpu", dtype: str | None = None) -> Restored:
    """Load a finished run: its backbone from where the config has it, its factors from best.ckpt.

    Args:
        run: the run directory.
        accelerator: where it will be used, which decides a dtype of auto.
        dtype: of the backbone, float32 or bfloat16; None for the one that the run was trained in.

    Raises:
        UserError: there is no finished run in that folder, its files are not whole, or its backbone cannot be loaded.
    """
    directory = RunDirectory(Path(run).expanduser())
    if directory.finished() is None:
        raise UserError(f"{run}: there is no finished run in that folder (no summary.json)")
    summary = directory.summary_with(["tau"], ["data_sha256", "dtype", "model"])
    try:
        cfg = directory.config()
        cfg.model.dtype = dtype or summary["dtype"]
        known = flat(OmegaConf.to_container(cfg))
        for key, value in EARLIER.items():
            if key not in known:  # the run is of before there was such a key
                OmegaConf.update(cfg, key, value, force_add=True)
        max_tokens = cfg.data.max_tokens
    except (OSError, KeyError, OmegaConfBaseException) as error:
        raise UserError(f"{run} is not a whole run directory: {CONFIG}: {first_line(error)}") from error
    check_calls(cfg, "model.loader")
    checkpoint = load_best(directory)
    pretrained = load_backbone(cfg.model, accelerator, max_tokens)
    trained_on = summary.get("backbone_sha256")  # which runs of before do not have
    same_dtype = dtype in (None, summary["dtype"])
    if trained_on is not None and same_dtype and trained_on != backbone_sha256(pretrained.model):
        log.warning("the backbone is not to the bit the one that %s was trained on", run)
    model = HierarchicalLoRA.from_hyperparameters(pretrained.model, checkpoint["hyper_parameters"])
    model.load_trained_state(checkpoint["state_dict"])
    return Restored(model.eval(), pretrained.tokenizer, cfg, summary, directory)
