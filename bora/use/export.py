"""The command `python -m bora.use.export RUN OUT`: a finished run as PEFT adapters, or as a merged model."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bora.commands.exits import cli_errors
from bora.config import Config, HubModel
from bora.errors import UserError
from bora.lib.files import write_text_atomically
from bora.lib.names import safe_names
from bora.model.lora import LowRank
from bora.runs.peft_folders import ADAPTER_TENSORS, CARD, MAPPING, MEAN, PREFIX
from bora.use.card import card
from bora.use.common import check_tasks, destination, whole_folder
from bora.use.restore import Restored, restore

NEEDS = "bora export needs its extra: pip install 'bora[peft]'"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bora export",
        description="A finished run's LoRAs as PEFT adapters, a folder each, and the hierarchical mean as one more.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run's directory")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must be empty or not exist")
    parser.add_argument(
        "-t",
        "--task",
        action="append",
        dest="tasks",
        metavar="NAME",
        help="export this task only, without the mean; may be given several times",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="write one task's whole model, its LoRA merged into the base model's weights",
    )
    return parser


def export(run: Path, out: Path, tasks: list[str] | None = None, merge: bool = False) -> None:
    """Write a run's adapters, or one task's merged model.

    Args:
        run: the run directory.
        out: the folder to write, complete or not at all.
        tasks: names of those wanted; None for all of them and the mean.
        merge: write the whole model of the one task.

    Raises:
        UserError: nothing that can be exported, or nowhere to write it.
    """
    out = destination(out)
    wanted = None if tasks is None else list(dict.fromkeys(tasks))
    merged = wanted[0] if merge and wanted is not None and len(wanted) == 1 else None
    if merge and merged is None:
        raise UserError("--merge writes one task's whole model: give exactly one --task NAME")
    if not merge:
        require_peft()
    restored = restore(run)
    check_tasks(restored, wanted or [])
    base = base_name(restored.cfg, restored.model.backbone.model)
    quantization = restored.cfg.model.quantization
    if merge and quantization is not None:
        raise UserError(
            f"--merge: the run's base model is in {quantization}, whose weights cannot take up an update; "
            "export adapters"
        )
    if merged is not None:
        with whole_folder(out) as folder:
            write_merged(folder, restored, base, merged, out.name)
        print(f"merged model: {out}")
        return
    if base is None:
        raise UserError(
            f"the base model {restored.summary['model']} has random weights that are in no folder, so no adapter "
            "could be loaded onto it; write a whole model with --merge --task NAME"
        )
    with whole_folder(out) as folder:
        n = write_adapters(folder, restored, base, wanted)
    print(f"{n} PEFT adapters: {out}")


def require_peft() -> None:
    """Say what to install where PEFT is not."""
    try:
        import peft  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"{NEEDS} (there is no {error.name})") from error


def base_name(cfg: Config, model: PreTrainedModel) -> str | None:
    """By what transformers loads the frozen model: its hub name, or its folder; None where it is in neither.

    Args:
        cfg: the run's config.
        model: as it was loaded.
    """
    loaded = model.config.name_or_path
    if not loaded:
        return None
    if Path(loaded).is_relative_to(HF_HUB_CACHE) and isinstance(
        cfg.model, HubModel
    ):  # a snapshot's folder is of this machine, the name is of any
        return cfg.model.path
    return str(Path(loaded).absolute()) if Path(loaded).is_dir() else loaded


def write_adapters(out: Path, restored: Restored, base: str, wanted: list[str] | None) -> int:
    """A folder an adapter, and the file that maps folders to tasks; how many adapters.

    Args:
        wanted: names of tasks; None for all and the mean.
    """
    model, adapters = restored.model.backbone.model, restored.model.adapters
    folders = safe_names(adapters.task_names, reserved=(MEAN, MAPPING))
    chosen: dict[str, str | None] = {folders[t]: t for t in wanted or adapters.task_names}
    if wanted is None:
        chosen[MEAN] = None
    config = peft_config(model, restored.model.hyperparameters, base)
    for folder, task in chosen.items():
        config.save_pretrained(str(out / folder))
        lora = restored.model.mean if task is None else adapters.tasks[task]
        save_file(peft_tensors(lora), out / folder / ADAPTER_TENSORS, metadata={"format": "pt"})
        write_text_atomically(out / folder / CARD, card(restored, base, task, folder))
    mapping = {
        "mean": MEAN if MEAN in chosen else None,
        "tasks": {folder: task for folder, task in chosen.items() if task is not None},
    }
    write_text_atomically(out / MAPPING, json.dumps(mapping, indent=2, ensure_ascii=False) + "\n")
    return len(chosen)


def peft_config(model: PreTrainedModel, hparams: Mapping, base: str):
    """The LoraConfig of every adapter of a run.

    Args:
        model: the frozen model.
        hparams: the model's: layers, rank, alpha.
        base: by what transformers loads it.
    """
    from peft import LoraConfig

    layers = hparams["layers"]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
        r=hparams["rank"],
        lora_alpha=hparams["alpha"],
        lora_dropout=0.0,
        # GPT-2's layers keep their weights transposed.
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in layers),
    )
    config.target_modules = target_modules(model, layers)  # PEFT makes a set of a list, in any order
    return config


def target_modules(model: PreTrainedModel, layers: list[str]) -> list[str]:
    """By what PEFT finds exactly these layers: their last names if that is enough, else their whole names.

    Args:
        model: PEFT looks among all its modules, the head and what is not linear too.
        layers: their whole names.
    """
    endings = sorted({name.rsplit(".", 1)[-1] for name in layers})
    found = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in endings}
    return endings if found == set(layers) else list(layers)


def peft_tensors(lora: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """One LoRA under the names that PEFT writes, float32: lora_A [r, n_in] and lora_B [n_out, r] a layer."""
    return {
        f"{PREFIX}{layer}.lora_{factor}.weight": value.detach().float().clone()
        for layer, factors in lora.items()
        for factor, value in factors._asdict().items()
    }


def write_merged(out: Path, restored: Restored, base: str | None, task: str, name: str) -> None:
    """One task's whole model, tokenizer and card.

    Args:
        name: what the folder will be called.
    """
    backbone = restored.model.backbone
    model = backbone.model
    merge_into(model, restored.model.tasks[task], backbone.scale)
    model.save_pretrained(out)
    restored.tokenizer.save_pretrained(out)
    write_text_atomically(out / CARD, card(restored, base, task, name, merged=True))


@torch.no_grad()
def merge_into(model: PreTrainedModel, lora: Mapping[str, LowRank], scale: float) -> None:
    """W + (α/r) B A at each adapted layer, computed in float32, kept in the weight's own dtype.

    Args:
        model: it is changed.
        scale: α/r.
    """
    for name, (A, B) in lora.items():
        layer, weight = model.get_submodule(name), model.get_parameter(f"{name}.weight")
        update = scale * (B.float() @ A.float())  # [n_out, n_in]
        weight.copy_(weight.float() + (update.T if isinstance(layer, Conv1D) else update))


def main() -> None:
    """Run the command line."""
    arguments = parser().parse_args()
    with cli_errors():
        export(arguments.run, arguments.out, arguments.tasks, arguments.merge)


if __name__ == "__main__":
    main()
