"""Load the model that a config asks for, in the dtype and with the attention that suit this machine."""

import hashlib
import json
import logging
import timeit

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bora.config.schema import AnyModel
from bora.errors import UserError, first_line
from bora.lib.machine import device_type
from bora.model.pretrained import Pretrained, load
from bora.model.quantization import quantise

log = logging.getLogger(__name__)

MIN_SPEEDUP = 1.5  # of bfloat16 over float32; below it bfloat16 is not worth its rounding
MAX_EAGER_TOKENS = 256  # up to here eager attention beats torch's fused one in bfloat16 on a CPU
# Keys of transformers' configs that say where a model comes from and how it is run, not what it is.
NOT_THE_MODEL = {"_name_or_path", "transformers_version", "_attn_implementation", "dtype", "use_cache"}
# Tokenizers' rules differ in digits, spaces, capitals, accents, line breaks and other scripts.
PROBE = "The 2 FOXES' été, 1234  42:\n\tif x != -0.5:  # don’t 水 🙂"


def load_backbone(model: AnyModel, accelerator: str, max_tokens: int, weights: bool = True) -> Pretrained:
    """Load a model, in the dtype and with the attention that its config asks for.

    Args:
        accelerator: where it will run, by Lightning's name.
        max_tokens: length of the longest document.
        weights: False loads only the model's shape; see `bora.model.pretrained.load`.

    Raises:
        UserError: see `load` and `quantise`; or transformers refuses the attention.
    """
    gpu, dtype = device_type(accelerator) == "cuda", model.dtype
    if dtype == "auto":
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else bfloat16_speed() >= MIN_SPEEDUP
        dtype = "bfloat16" if fast else "float32"
        log.info("model.dtype=auto: %s, the faster one on this %s", dtype, "GPU" if gpu else "processor")
    pretrained = load(model, dtype, weights)
    if model.quantization is not None and weights:
        quantise(pretrained.model, model.quantization)
    attention = model.attention
    if attention == "auto":
        if gpu or dtype != "bfloat16" or max_tokens > MAX_EAGER_TOKENS:
            return pretrained
        attention = "eager"
    try:
        pretrained.model.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        raise UserError(f"model.attention={attention} is refused: {first_line(error)}") from error
    return pretrained


def backbone_sha256(model: PreTrainedModel) -> str:
    """Hash what identifies a model: its config, and its tensors' names, shapes, dtypes and values."""
    config = {key: value for key, value in model.config.to_diff_dict().items() if key not in NOT_THE_MODEL}
    found = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        if type(tensor) is Tensor:  # quantised tensors have types of their own
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what identifies a tokenizer: its vocabulary, and the tokens of a text that exercises its rules."""
    found = [sorted(tokenizer.get_vocab().items()), list(tokenizer(PROBE).input_ids)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def bfloat16_speed(size: int = 384, repeats: int = 5) -> float:
    """Measure how many times faster this processor multiplies matrices in bfloat16 than in float32."""

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(size, size, dtype=dtype)
        return min(timeit.repeat(lambda: matrix @ matrix, number=1, repeat=repeats + 1))  # the first one is warm-up

    return seconds(torch.float32) / seconds(torch.bfloat16)
