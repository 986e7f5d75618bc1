"""Read PEFT adapters to start a run from: init_from=FOLDER."""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bora.bayes.forms import Shared
from bora.bayes.model import HierarchicalLoRA
from bora.errors import UserError, first_line
from bora.model.backbone import Backbone
from bora.model.lora import LowRank
from bora.runs.values import read_json

log = logging.getLogger(__name__)

MAPPING = "tasks.json"  # from `bora export`: {"mean": its folder or null, "tasks": {folder: the task's name}}
# PEFT's names: of the files in an adapter's folder, and before the names of its tensors.
ADAPTER_CONFIG, ADAPTER_TENSORS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
# Keys that adapter_config.json may set: the adapter's size, layers and origin, and parameters of variants that other keys
# turn on. Any other key that is set may change the update, and is refused.
HARMLESS = set(
    "peft_type peft_version task_type base_model_name_or_path revision inference_mode auto_mapping r lora_alpha "
    "lora_dropout target_modules exclude_modules layers_to_transform layers_pattern fan_in_fan_out init_lora_weights "
    "eva_config megatron_core qalora_group_size".split()
)
UNSET: tuple[object, ...] = (None, False, "none", {}, [])
# Other starts (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the frozen weights, so their LoRAs do not fit the original.
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
MAX_SHOWN = 5  # names in a line of the log


class PeftLoRA(NamedTuple):
    """An adapter, read from its folder.

    Attributes:
        layers: layer name → A [r', n_in], B [n_out, r'], float32.
        rank: r'.
        scale: α'/r'.
    """

    layers: dict[str, LowRank]
    rank: int
    scale: float


def has_adapters(folder: Path) -> bool:
    """Return whether a folder is a PEFT adapter, or was made by `bora export`."""
    return (folder / ADAPTER_CONFIG).is_file() or (folder / MAPPING).is_file()


def start_from_adapters(model: HierarchicalLoRA, folder: Path) -> None:
    """Start at one PEFT adapter, which becomes Θ and every θ_d, or at an exported folder's, matched by task name.

    From a folder, Θ is the exported mean, or else the mean of the adapters; a task without an adapter starts at Θ.

    Args:
        model: a new model; if an adapter's rank is smaller, the other rows of A are left unchanged.
        folder: a folder for which `has_adapters` is true.

    Raises:
        UserError: an adapter is not readable, not a plain LoRA, or has other layers or a larger rank.
    """
    adapters = model.adapters
    fresh = adapters.mean.detach().clone()

    def read(name: str) -> Tensor:
        return _theta(model.backbone, read_adapter(folder / name), folder / name, fresh)

    if (folder / ADAPTER_CONFIG).is_file():
        adapters.start_at(read(""))
        log.info("init_from: the mean and every task start at the adapter %s", folder)
        return
    mean_folder, tasks = read_mapping(folder)
    names, ours = adapters.task_names, set(adapters.task_names)
    # Without an exported mean, the adapters of tasks that this run lacks count in the mean too.
    thetas = {task: read(name) for name, task in tasks.items() if task in ours or mean_folder is None}
    mean = read(mean_folder) if mean_folder is not None else torch.stack(list(thetas.values())).mean(dim=0)
    if isinstance(adapters, Shared):
        adapters.start_at(mean)
        log.info("init_from: the mean, which every task shares, starts at %s", mean_folder or "the adapters' mean")
        return
    adapters.start_at(mean, torch.stack([thetas.get(task, mean) for task in names]))
    log_start(names, list(tasks.values()))


def log_start(ours: Sequence[str], theirs: Sequence[str]) -> None:
    """Log which tasks start at their LoRA from another run or export, which at Θ, and which LoRAs are not used."""
    known, wanted = set(theirs), set(ours)
    new = [name for name in ours if name not in known]
    unused = [name for name in theirs if name not in wanted]
    log.info("init_from: %d of %d tasks start at their own LoRA", len(ours) - len(new), len(ours))
    if new:
        log.info("init_from: there is no LoRA for %s: they start at the mean", _shorten(new))
    if unused:
        log.info("init_from: this run has no task %s: their LoRAs are not used", _shorten(unused))


def read_mapping(folder: Path) -> tuple[str | None, dict[str, str]]:
    """Read tasks.json: the mean's folder, or None; and folder → task."""
    content = read_json(folder / MAPPING)
    mean, tasks = content.get("mean"), content.get("tasks")
    if (
        not isinstance(mean, str | None)
        or not isinstance(tasks, dict)
        or not all(isinstance(task, str) for task in tasks.values())
        or len(set(tasks.values())) != len(tasks)
        or (mean is None and not tasks)
    ):
        raise UserError(f"{folder / MAPPING} is not what bora export writes: a mean, and folders with their tasks")
    return mean, tasks


def read_adapter(folder: Path) -> PeftLoRA:
    """Read one adapter's folder; raise a UserError if it is not readable, or not a plain LoRA."""
    config = read_json(folder / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{folder} is a PEFT adapter of type {config.get('peft_type')}; a LORA is needed")
    for key, value in config.items():
        if (key not in HARMLESS and value not in UNSET) or (key == "init_lora_weights" and value not in PLAIN_STARTS):
            raise UserError(f"{folder} has {key}={json.dumps(value)}: only plain LoRAs can be started from")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise UserError(f"{folder / ADAPTER_CONFIG} has no valid r and lora_alpha")
    return PeftLoRA(_read_layers(folder / ADAPTER_TENSORS, rank), rank, alpha / rank)


def _read_layers(file: Path, rank: int) -> dict[str, LowRank]:
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is not readable: {first_line(error)}") from error
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        parts = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", key)
        if parts is None:
            raise UserError(f"{file} holds {key}: only plain LoRAs of linear layers can be started from")
        if not value.isfinite().all():
            raise UserError(f"{file} holds {key} with values that are not finite")
        found.setdefault(parts[1], {})[parts[2]] = value.float()
    for layer, pair in found.items():
        if len(pair) != 2 or pair["A"].dim() != 2 or pair["B"].dim() != 2:
            raise UserError(f"{file} lacks the matrix lora_A or lora_B of {layer}")
        if (pair["A"].shape[0], pair["B"].shape[1]) != (rank, rank):
            raise UserError(f"{file}: {layer} has another rank than the {rank} of {ADAPTER_CONFIG}")
    return {layer: LowRank(pair["A"], pair["B"]) for layer, pair in found.items()}


def _theta(backbone: Backbone, lora: PeftLoRA, folder: Path, fresh: Tensor) -> Tensor:
    """Return θ [P] with the adapter's update: (α/r) B A equals (α'/r') B' A'.

    Args:
        fresh: [P] the initial θ without the adapter.
    """
    theta = fresh.clone()
    factors = backbone.layout.factors(theta)
    for layer in sorted(lora.layers.keys() ^ factors.keys()):
        where = "only this run" if layer in factors else f"only {folder}"
        raise UserError(f"lora.target_modules: {where} adapts the layer {layer}; give the layers of {folder}")
    for layer, (A, B) in factors.items():
        theirs = lora.layers[layer]
        if lora.rank > len(A):
            raise UserError(f"{folder} has rank {lora.rank}; give lora.rank={lora.rank} or more")
        if (theirs.A.shape[1], theirs.B.shape[0]) != (A.shape[1], B.shape[0]):
            raise UserError(
                f"{folder} has {layer} from {theirs.A.shape[1]} to {theirs.B.shape[0]} features, this "
                f"model from {A.shape[1]} to {B.shape[0]}: it is of another base model"
            )
        A[: lora.rank] = theirs.A
        # Beyond its rank A stays random and B zero, as in a new LoRA: if both were zero, they could never learn.
        B[:, : lora.rank] = theirs.B * (lora.scale / backbone.scale)
    return theta


def _shorten(names: list[str]) -> str:
    rest = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + rest
