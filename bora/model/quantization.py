"""Quantise a frozen backbone: its linear layers keep their weights in 8 or 4 bits."""

import importlib.util
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bora.errors import UserError

log = logging.getLogger(__name__)

BLOCK = 64  # weights that share a scale in nf4
QUANTIZATIONS = {"int8": "torchao", "nf4": "bitsandbytes"}  # kind → the package it needs


class _FrozenProduct(torch.autograd.Function):
    """x Wᵀ + b, where the backward dequantises W [n_out, n_in] again.

    torchao's own product keeps each layer's W as floats for the backward, which adds up to the whole model.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        W = weight().to(x.dtype)
        # Not torch's linear: it returns a view, and autograd refuses to add a LoRA to a Function's view in place.
        y = x.new_empty(*x.shape[:-1], len(W))
        torch.mm(x.reshape(-1, x.shape[-1]), W.T, out=y.view(-1, len(W)))
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return grad @ ctx.weight().to(grad.dtype), None, None


class QuantisedLinear(nn.Linear):
    """A frozen linear layer that keeps its weight in 8 or 4 bits, and computes in its input's dtype."""

    codes: Tensor
    pairs: Tensor
    absmax: Tensor

    def __init__(self, layer: nn.Linear | Conv1D, kind: str):
        """
        Args:
            layer: the layer that it replaces.
            kind: int8, one scale for each output | nf4, one for each block of 64 weights (Dettmers et al. 2023).
        """
        weight = layer.weight.detach().T.contiguous() if isinstance(layer, Conv1D) else layer.weight.detach()
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.bias, self.kind = layer.bias, kind
        del self.weight  # so that reading it fails
        if kind == "int8":
            from torchao.quantization import Int8WeightOnlyConfig, quantize_

            whole = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
            whole.weight = nn.Parameter(weight, requires_grad=False)
            quantize_(whole, Int8WeightOnlyConfig())
            self.quantised = whole.weight
        else:
            from bitsandbytes.functional import quantize_4bit

            codes, state = quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
            pairs = torch.cartesian_prod(state.code, state.code)
            self.register_buffer("codes", codes.flatten())  # one byte for two weights
            self.register_buffer("pairs", pairs)  # [256, 2] the two values of each byte
            self.register_buffer("absmax", state.absmax[:, None])  # each block's scale

    def dequantised(self) -> Tensor:
        """Return the weight, [n_out, n_in], before it is cast to its input's dtype."""
        if self.kind == "int8":
            return self.quantised.dequantize()
        # Not by bitsandbytes: on a CPU, 0.50.2 returns wrong weights if n_in is less than a block.
        values = nn.functional.embedding(self.codes.int(), self.pairs).flatten()
        blocks = nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK) * self.absmax
        return blocks.flatten()[: self.out_features * self.in_features].view(self.out_features, -1)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply: […, n_in] → […, n_out]."""
        return _FrozenProduct.apply(x, self.dequantised, self.bias)


def plain_layers(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """Find the linear layers to quantise, by name: not the head, nor subclasses, which may do more than multiply."""
    head = model.get_output_embeddings()
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, Conv1D)) and type(layer) in (nn.Linear, Conv1D) and layer is not head
    }


def quantise(model: PreTrainedModel, kind: str) -> None:
    """Replace each plain linear layer except the head by a QuantisedLinear.

    Args:
        model: a transformers causal language model.
        kind: one of QUANTIZATIONS.

    Raises:
        UserError: its package is not installed, or the model has no such layers.
    """
    plain = plain_layers(model)
    if not plain:
        raise UserError(f"model.quantization={kind}: the model has no plain linear layers to quantise")
    package = QUANTIZATIONS[kind]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"model.quantization={kind} needs the package {package}: pip install {package}")
    log.info("model.quantization=%s: %d linear layers", kind, len(plain))
    for name in list(plain):  # each layer is freed as soon as it is replaced
        model.set_submodule(name, QuantisedLinear(plain.pop(name), kind))
