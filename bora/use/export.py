"""Export a finished run as PEFT adapters, or as a merged model."""

import copy
import json
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bora.config.schema import Config, HubModel
from bora.errors import UserError, first_line
from bora.lib.console import progress
from bora.lib.files import write_folder, write_text_atomically
from bora.lib.names import safe_names
from bora.model.lora import LowRank
from bora.runs.peft import ADAPTER_TENSORS, MAPPING, PREFIX
from bora.use.card import CARD, write_card, write_index
from bora.use.restore import Restored, restore

if TYPE_CHECKING:
    from peft import LoraConfig

MEAN = "hierarchical-mean"  # the folder of Θ's adapter


def export(run: Path, out: Path, tasks: list[str] | None = None, merge: bool = False, repo: str | None = None) -> int:
    """Write a run's adapters, or one task's merged model.

    Args:
        out: the folder to write, complete or not at all.
        tasks: the tasks to export, see `Restored.find_tasks`; None for all of them and the mean.
        merge: write the whole model of the one task.
        repo: the hub's repository from which it will be loaded; None for this folder.

    Returns:
        The number of adapters; 0 for a merged model.

    Raises:
        UserError: the run cannot be exported, or the folder cannot be written.
    """
    if merge and len(set(tasks or [])) != 1:
        raise UserError("--merge writes one task's whole model: give exactly one --task NAME")
    with write_folder(out) as folder:
        restored = restore(run)
        wanted = None if tasks is None else list(dict.fromkeys(restored.find_tasks(tasks)))
        base = base_name(restored.cfg, restored.model.backbone.model)
        if merge and wanted is not None:
            write_merged(folder, restored, base, wanted[0], repo)
            return 0
        if base is None:
            raise UserError(
                f"the base model {restored.summary['model']} has random weights, which are saved nowhere, so an "
                "adapter could not be loaded onto it; write a whole model with --merge --task NAME"
            )
        return write_adapters(folder, restored, base, wanted, repo)


def base_name(cfg: Config, model: PreTrainedModel) -> str | None:
    """Return the hub name or folder from which transformers loads the frozen model; None if it has neither."""
    loaded = model.config.name_or_path
    if not loaded:
        return None
    if Path(loaded).is_relative_to(HF_HUB_CACHE) and isinstance(cfg.model, HubModel):
        return cfg.model.path  # the snapshot's folder is only on this machine
    return str(Path(loaded).absolute()) if Path(loaded).is_dir() else loaded


def write_adapters(out: Path, restored: Restored, base: str, wanted: list[str] | None, repo: str | None = None) -> int:
    """Write a folder for each adapter, the file that maps folders to tasks, and a card; return the number of adapters.

    Args:
        wanted: names of tasks; None for all and the mean.
        repo: see `export`.
    """
    adapters = restored.model.adapters
    folders = safe_names(adapters.names, reserved=(MEAN, MAPPING, CARD))
    chosen: dict[str, str | None] = {
        folders[task]: task for task in (adapters.task_names if wanted is None else wanted)
    }
    mapping = {"mean": MEAN if wanted is None else None, "tasks": dict(chosen)}
    if wanted is None:
        chosen[MEAN] = None
    config = peft_config(restored.model.backbone.model, restored.model.hyperparameters, base, restored.cfg.lora.dropout)
    for folder, task in progress([*chosen.items()], "export"):
        config.save_pretrained(str(out / folder))
        lora = restored.model.mean if task is None else adapters.tasks[task]
        save_file(peft_tensors(lora), out / folder / ADAPTER_TENSORS, metadata={"format": "pt"})
        write_card(out / folder, restored, base, task, repo)
    write_index(out, restored, base, chosen, repo)
    write_text_atomically(out / MAPPING, json.dumps(mapping, indent=2, ensure_ascii=False) + "\n")
    return len(chosen)


def peft_config(model: PreTrainedModel, hparams: Mapping, base: str, dropout: float) -> "LoraConfig":
    """Make the LoraConfig that all adapters of a run share.

    Args:
        model: the frozen model.
        hparams: layers, rank, alpha.
        base: see `base_name`.
        dropout: the run's; PEFT applies it if an adapter is trained further.

    Raises:
        UserError: PEFT is not installed, or would load the adapters wrongly.
    """
    try:
        from peft import LoraConfig
    except ModuleNotFoundError as error:
        raise UserError(f"bora export needs a package that is missing ({error.name}): pip install peft") from error

    layers = hparams["layers"]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
        r=hparams["rank"],
        lora_alpha=hparams["alpha"],
        lora_dropout=dropout,
        # GPT-2's layers keep their weights transposed.
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in layers),
    )
    config.target_modules = target_modules(model, layers)  # LoraConfig() would make the list a set, in any order
    _require_loadable(config, model, layers)
    return config


def _require_loadable(config: "LoraConfig", model: PreTrainedModel, layers: list[str]) -> None:
    """Raise if PEFT would not load the adapters into all of their layers, tested on a model without weights.

    PEFT 0.21 takes dense layers for routed experts because of their names (peft#3711), and refuses Mamba's out_proj.
    """
    from peft import get_peft_model

    wrong, instead = f"PEFT {version('peft')} would", "write whole models with --merge --task NAME"
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from PEFT, about transformers
        shape = type(model)(copy.deepcopy(model.config))
        try:
            loaded = get_peft_model(shape, copy.deepcopy(config))
        except ValueError as error:
            raise UserError(f"{wrong} refuse these adapters ({first_line(error)}); {instead}") from error
    if lost := [name for name in layers if not hasattr(loaded.get_submodule(f"base_model.model.{name}"), "lora_A")]:
        raise UserError(
            f"{wrong} load {lost[0]} of a {model.config.model_type} without its LoRA (peft#3711); {instead}"
        )


def target_modules(model: PreTrainedModel, layers: list[str]) -> list[str]:
    """Return names by which PEFT finds exactly these layers: their last parts if those are enough, else whole names.

    PEFT searches all modules of a model, including the head and modules that are not linear.
    """
    endings = sorted({name.rsplit(".", 1)[-1] for name in layers})
    found = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in endings}
    return endings if found == set(layers) else list(layers)


def peft_tensors(lora: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """Name one LoRA's tensors as PEFT does, float32: lora_A [r, n_in] and lora_B [n_out, r] for each layer."""
    return {
        f"{PREFIX}{layer}.lora_{factor}.weight": value.detach().float().clone()
        for layer, factors in lora.items()
        for factor, value in factors._asdict().items()
    }


def write_merged(out: Path, restored: Restored, base: str | None, task: str, repo: str | None) -> None:
    """Write one task's whole model, tokenizer and card; refuse a quantised base model."""
    backbone, quantization = restored.model.backbone, restored.cfg.model.quantization
    if quantization is not None:
        raise UserError(f"--merge cannot add to a base model with weights in {quantization}; export adapters")
    merge_into(backbone.model, restored.model.tasks[task], backbone.scale)
    backbone.model.save_pretrained(out)
    restored.tokenizer.save_pretrained(out)
    write_card(out, restored, base, task, repo, merged=True)


@torch.no_grad()
def merge_into(model: PreTrainedModel, lora: Mapping[str, LowRank], scale: float) -> None:
    """Set W to W + (α/r) B A in each adapted layer, computed in float32, stored in W's dtype; `scale` is α/r."""
    for name, (A, B) in lora.items():
        layer, weight = model.get_submodule(name), model.get_parameter(f"{name}.weight")
        update = scale * (B.float() @ A.float())  # [n_out, n_in]
        weight.copy_(weight.float() + (update.T if isinstance(layer, Conv1D) else update))
