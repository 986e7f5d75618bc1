"""Which layers of a backbone get a LoRA."""

import re

from torch import nn
from transformers.pytorch_utils import Conv1D

from bora.errors import InputError

# What PEFT adapts by default in each architecture; a test holds this table to PEFT's own.
DEFAULT_TARGETS = {
    "bloom": ["query_key_value"],
    "falcon": ["query_key_value"],
    "gemma": ["q_proj", "v_proj"],
    "gemma2": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "gpt_neo": ["q_proj", "v_proj"],
    "gpt_neox": ["query_key_value"],
    "gptj": ["q_proj", "v_proj"],
    "llama": ["q_proj", "v_proj"],
    "mistral": ["q_proj", "v_proj"],
    "mixtral": ["q_proj", "v_proj"],
    "opt": ["q_proj", "v_proj"],
    "phi": ["q_proj", "v_proj", "fc1", "fc2"],
    "qwen2": ["q_proj", "v_proj"],
    "qwen3": ["q_proj", "v_proj"],
}


def find_targets(backbone: nn.Module, patterns: str | list[str] | None) -> dict[str, nn.Module]:
    """The linear layers to adapt, by name, in the backbone's own order.

    Args:
        backbone: a transformers causal language model.
        patterns: None for the architecture's default; "all-linear" for every linear layer but
            the head; a list of name endings ("q_proj"); or one regular expression that must match
            a layer's whole name. The same reading as PEFT's `target_modules`.

    Raises:
        InputError: nothing matches, or the architecture has no default.
    """
    head = backbone.get_output_embeddings()
    linear = {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }
    if patterns is None:
        architecture = backbone.config.model_type
        if architecture not in DEFAULT_TARGETS:
            raise InputError(
                f"lora.target_modules has no default for the architecture {architecture!r}; name "
                f"the layers, for example lora.target_modules=[{_endings(linear)[0]}], or all-linear"
            )
        patterns = DEFAULT_TARGETS[architecture]
    if patterns == "all-linear":
        found = linear
    elif isinstance(patterns, str):
        try:
            expression = re.compile(patterns)
        except re.error as error:
            raise InputError(
                f"lora.target_modules={patterns!r} is not a regular expression ({error})"
            ) from error
        found = {name: m for name, m in linear.items() if expression.fullmatch(name)}
    else:
        found = {
            name: m
            for name, m in linear.items()
            if any(name == p or name.endswith(f".{p}") for p in patterns)
        }
    if not found:
        raise InputError(
            f"lora.target_modules={patterns} matches no linear layer of the model; it has "
            f"{', '.join(_endings(linear))}"
        )
    return found


def _endings(linear: dict[str, nn.Module]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in linear})
