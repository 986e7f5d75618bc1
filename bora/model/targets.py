"""Which layers of a backbone get a LoRA."""

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bora.errors import UserError
from bora.model.lora import Linear, linear_shape

DOCUMENTS, LENGTH = 3, 8  # documents, and tokens in each, to test the layers with

# The layers that PEFT adapts by default in each causal language model; a test compares this table with PEFT's.
_Q_V = "bart gemma gemma2 gemma3_text gpt_neo gptj llama llama4 mistral mixtral opt qwen2 qwen3 stablelm".split()
DEFAULT_TARGETS: dict[str, str | list[str]] = {
    **{name: ["q_proj", "v_proj"] for name in _Q_V},
    **{name: ["query", "value"] for name in ("bert", "electra", "roberta", "xlm-roberta")},
    **{name: ["query_key_value"] for name in ("bloom", "falcon", "gpt_neox")},
    **{name: ["c_attn"] for name in ("gpt2", "gpt_bigcode")},
    "codegen": ["qkv_proj"],
    "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
    "mpt": ["Wqkv"],
    "nemotron_h": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "phi": ["q_proj", "v_proj", "fc1", "fc2"],
    "rwkv": ["key", "value", "receptance", "output"],
}


def find_targets(backbone: PreTrainedModel, patterns: str | list[str] | None) -> dict[str, Linear]:
    """Find the linear layers to adapt, by name, in the backbone's order, and check that their rows are documents.

    Args:
        backbone, patterns: see `named_targets`.

    Raises:
        UserError: see `named_targets`; or a layer does not see the batch document by document (see `_check_rows`).
    """
    found = named_targets(backbone, patterns)
    _check_rows(backbone, found)
    return found


def named_targets(backbone: PreTrainedModel, patterns: str | list[str] | None) -> dict[str, Linear]:
    """Find the linear layers to adapt, by name, in the backbone's order, without running it.

    Args:
        backbone: a transformers causal language model.
        patterns: None for the architecture's default; "all-linear" for every linear layer except
            the head; a list of names or name endings ("q_proj"); or one regular expression that must
            match a layer's whole name. PEFT reads its `target_modules` in the same way.

    Raises:
        UserError: nothing matches; the head or an embedding matches; or the architecture has no default.
    """
    head = backbone.get_output_embeddings()
    linear = {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    }
    asked = [] if patterns is None or isinstance(patterns, str) else patterns
    if patterns is None:
        architecture = backbone.config.model_type
        if architecture not in DEFAULT_TARGETS:
            raise UserError(
                f"lora.target_modules has no default for the architecture {architecture!r}; name "
                f"the layers, for example lora.target_modules=[{_endings(linear)[0]}], or all-linear"
            )
        patterns = DEFAULT_TARGETS[architecture]
    if isinstance(patterns, str) and patterns.lower() == "all-linear":
        found = linear
    else:
        matches = _matcher(patterns)
        found = {name: module for name, module in linear.items() if matches(name)}
        for name, module in backbone.named_modules():
            # PEFT would adapt the head or an embedding, too; here they stay frozen, so a match is an error.
            if name not in linear and matches(name) and next(module.parameters(recurse=False), None) is not None:
                raise UserError(
                    f"lora.target_modules={patterns} matches {name}, a {type(module).__name__}; only linear "
                    "layers below the output layer can have a LoRA"
                )
    if not found:
        raise UserError(
            f"lora.target_modules={patterns} matches no linear layer of the model; it has "
            f"{', '.join(_endings(linear))}"
            + ". Text is a regular expression of a whole name; give names in brackets, [a,b]"
            * isinstance(patterns, str)
        )
    if missing := [name for name in asked if not any(map(_matcher([name]), found))]:
        raise UserError(
            f"lora.target_modules={patterns}: {missing[0]} is no linear layer of the model; it has "
            f"{', '.join(_endings(linear))}"
        )
    return found


def _matcher(patterns: str | list[str]) -> Callable[[str], bool]:
    if not isinstance(patterns, str):
        return lambda name: any(name == p or name.endswith(f".{p}") for p in patterns)
    try:
        expression = re.compile(patterns)
    except re.error as error:
        raise UserError(f"lora.target_modules={patterns!r} is not a regular expression ({error})") from error
    return lambda name: expression.fullmatch(name) is not None


@torch.no_grad()
def _check_rows(backbone: PreTrainedModel, layers: Mapping[str, Linear]) -> None:
    """Check what one LoRA for each document assumes about each layer, on three documents of eight tokens.

    A layer must see all tokens of all documents, document after document, and return n_out numbers for each. A routed
    expert sees only the tokens sent to it; a layer of an encoder or a vision tower sees none.

    The documents are run in two orders, and a layer's input must change its order with them, up to rounding.
    """
    tokens = torch.arange(LENGTH, device=next(backbone.parameters()).device)
    ids = torch.stack([tokens * (row + 1) + row for row in range(DOCUMENTS)])
    ids %= backbone.config.get_text_config().vocab_size
    first, moved = (_inputs(backbone, layers, order) for order in (ids, ids.roll(1, 0)))
    refused = [name for name in layers if not (first[name] and _follows(first[name], moved[name]))]
    if refused:
        others = sorted(set(_endings(layers)) - set(_endings(refused)))
        raise UserError(
            f"lora.target_modules: {refused[0]} does not process a batch row by row, which a LoRA per task "
            "needs (a routed expert or its router, a layer whose weight alone is used, or one that text does not "
            "reach?); name other layers" + (f": lora.target_modules=[{','.join(others)}]" if others else "")
        )


def _inputs(backbone: nn.Module, layers: Mapping[str, Linear], ids: Tensor) -> dict[str, list[Tensor]]:
    """Record each layer's input in each call; an empty tensor if the output is not of a linear layer's shape."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str):
        def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            plain = isinstance(output, Tensor) and output.shape == (*args[0].shape[:-1], linear_shape(layers[name])[1])
            seen[name].append(args[0].detach().float() if plain else ids.new_empty(0))

        return hook

    hooks = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()  # with dropout the two runs would differ
    try:
        backbone(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return seen


def _follows(first: list[Tensor], moved: list[Tensor]) -> bool:
    """Return whether `moved` is `first` with its documents shifted by one."""
    if len(first) != len(moved):
        return False
    for x, y in zip(first, moved, strict=True):
        by_document = x.shape[:1] == (DOCUMENTS,) and x.shape[1:-1].numel() == LENGTH  # DeepSeek has [R, 1, T, n]
        if x.shape != y.shape or not (by_document or x.shape[:-1] == (DOCUMENTS * LENGTH,)):
            return False
        x, y = x.reshape(DOCUMENTS, -1), y.reshape(DOCUMENTS, -1)
        # Relative to the distance between documents: rounding may make a router decide differently for some token.
        if (y - x.roll(1, 0)).norm() > 0.3 * (y - x).norm():
            return False
    return True


def _endings(linear: Iterable[str]) -> list[str]:
    return sorted({name.rsplit(".", 1)[-1] for name in linear})
