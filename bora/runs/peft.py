"""PEFT adapters as a run's start: init_from=FOLDER."""

import json
import logging
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bora.bayes.adapters import Shared
from bora.bayes.model import HierarchicalLoRA
from bora.errors import UserError, first_line
from bora.model.backbone import Backbone
from bora.model.lora import LowRank
from bora.runs.peft_folders import ADAPTER_CONFIG, ADAPTER_TENSORS, MAPPING, PREFIX

log = logging.getLogger(__name__)

# Keys of adapter_config.json that say where the adapter belongs or how it was made, not what it computes now.
# Whatever else is set there may change its update, and is refused.
HARMLESS = {
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
}
UNSET: tuple[object, ...] = (None, False, "none", {}, [])
# Others begin by changing the frozen weights (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA), so they fit no others.
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
SHOWN = 5  # names in a line of the log


class PeftLoRA(NamedTuple):
    """One adapter's folder, read.

    Attributes:
        layers: layer name → A [r', n_in], B [n_out, r'], float32.
        rank: r'.
        scale: α'/r'.
    """

    layers: dict[str, LowRank]
    rank: int
    scale: float


def has_adapters(folder: Path) -> bool:
    """Whether a folder is a PEFT adapter, or was made by `bora export`."""
    return (folder / ADAPTER_CONFIG).is_file() or (folder / MAPPING).is_file()


def start_from_adapters(model: HierarchicalLoRA, folder: Path) -> None:
    """Begin at PEFT adapters: at one that is Θ and every θ_d, or at an exported folder's, by the tasks' names.

    Θ is the exported mean, or the mean of the folder's adapters; a task that has none begins at Θ.

    Args:
        model: fresh; the rows of A that an adapter of a smaller rank does not have stay as they are.
        folder: one for which `has_adapters`.

    Raises:
        UserError: an adapter that cannot be read, is no plain LoRA, or is of other layers or a larger rank.
    """
    adapters = model.adapters
    fresh = adapters.mean.detach().clone()

    def read(name: str) -> Tensor:
        return _theta(model.backbone, read_adapter(folder / name), folder / name, fresh)

    if (folder / ADAPTER_CONFIG).is_file():
        mean = read("")
        adapters.start_at(mean)
        log.info("init_from: the mean and every task start at the adapter %s", folder)
        return
    mean_folder, tasks = read_mapping(folder)
    ours = set(adapters.task_names)
    # Where there is no mean, adapters of tasks that are not in this run have their part in it.
    thetas = {task: read(name) for name, task in tasks.items() if task in ours or mean_folder is None}
    mean = read(mean_folder) if mean_folder is not None else torch.stack(list(thetas.values())).mean(dim=0)
    if isinstance(adapters, Shared):
        adapters.start_at(mean)
        log.info("init_from: the mean, which every task is, starts at %s", mean_folder or "the adapters' mean")
        return
    rows = torch.stack([thetas.get(task, mean) for task in adapters.task_names])
    adapters.start_at(mean, rows)
    missing = [task for task in adapters.task_names if task not in thetas]
    log.info("init_from: %d of %d tasks start at their own adapter", len(ours) - len(missing), len(ours))
    if missing:
        log.info("init_from: no adapter for %s: they start at the mean", _some(missing))
    others = [task for task in tasks.values() if task not in ours]
    if others:
        log.info("init_from: this run has no task %s: their adapters start none", _some(others))


def read_mapping(folder: Path) -> tuple[str | None, dict[str, str]]:
    """The mean's folder, or None; and folder → task.

    Raises:
        UserError: the file is not what `bora export` writes.
    """
    content = _json(folder / MAPPING)
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
    """Read one adapter's folder.

    Raises:
        UserError: it is not readable, or not a plain LoRA.
    """
    config = _json(folder / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise UserError(f"{folder} is a PEFT adapter of type {config.get('peft_type')}; a LORA is needed")
    for key, value in config.items():
        if (key not in HARMLESS and value not in UNSET) or (key == "init_lora_weights" and value not in PLAIN_STARTS):
            raise UserError(f"{folder} has {key}={json.dumps(value)}: only a plain LoRA can be started from")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise UserError(f"{folder / ADAPTER_CONFIG} has no r and lora_alpha that are numbers")
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
            raise UserError(f"{file} holds {key}: only a plain LoRA of linear layers can be started from")
        if not value.isfinite().all():
            raise UserError(f"{file} holds {key} with values that are not finite")
        found.setdefault(parts[1], {})[parts[2]] = value.float()
    for layer, pair in found.items():
        if len(pair) != 2 or pair["A"].dim() != 2 or pair["B"].dim() != 2:
            raise UserError(f"{file} has not both of lora_A and lora_B as matrices for {layer}")
        if (pair["A"].shape[0], pair["B"].shape[1]) != (rank, rank):
            raise UserError(f"{file}: {layer} is of another rank than the {rank} of {ADAPTER_CONFIG}")
    return {layer: LowRank(pair["A"], pair["B"]) for layer, pair in found.items()}


def _theta(backbone: Backbone, lora: PeftLoRA, folder: Path, fresh: Tensor) -> Tensor:
    """[P] θ with the adapter's update: (α/r) B A is (α'/r') B' A', whatever the two ranks and α.

    Args:
        fresh: [P] a start as it would be without the adapter.

    Raises:
        UserError: other layers, or a larger rank.
    """
    ours = backbone.layout.factors(fresh)
    for layer in [*lora.layers, *ours]:
        if layer not in ours or layer not in lora.layers:
            lacking = "which this run does not adapt" if layer not in ours else "which it does not have"
            what = "has" if layer not in ours else "needs"
            raise UserError(
                f"init_from: {folder} {what} the layer {layer}, {lacking}; choose the adapter's layers by "
                "lora.target_modules"
            )
    theta = fresh.clone()
    for layer, (A, B) in backbone.layout.factors(theta).items():
        theirs = lora.layers[layer]
        if lora.rank > len(A):
            raise UserError(
                f"init_from: {folder} has rank {lora.rank}, more than lora.rank={len(A)}; give at least "
                f"lora.rank={lora.rank}"
            )
        if (theirs.A.shape[1], theirs.B.shape[0]) != (A.shape[1], B.shape[0]):
            raise UserError(
                f"init_from: {folder} has {layer} from {theirs.A.shape[1]} to {theirs.B.shape[0]} features, this "
                f"model from {A.shape[1]} to {B.shape[0]}: it is of another base model"
            )
        A[: lora.rank] = theirs.A
        # Beyond its rank A stays random and B zero, as a fresh LoRA's are: both zero could never learn.
        B[:, : lora.rank] = theirs.B * (lora.scale / backbone.scale)
    return theta


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object")
    return content


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
