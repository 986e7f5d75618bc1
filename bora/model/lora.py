"""The low-rank update of a linear layer, and where each layer's factors are in θ_d.

At a layer with frozen weight W the output for a document of task d is (eq. 3)::

    y = W x + (α/r) · B_d A_d x          A_d [r, n_in], B_d [n_out, r]
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, addmm, bmm, nn
from transformers.pytorch_utils import Conv1D

from bora.errors import UserError

Linear = nn.Linear | Conv1D  # GPT-2's Conv1D keeps its weight transposed


class LowRank(NamedTuple):
    """One low-rank update: A [r, n_in] and B [n_out, r]; or one for each task [D, …] or row [R, …]."""

    A: Tensor
    B: Tensor


class Layout:
    """Where in θ_d ∈ Rᴾ each layer's A and B are: A before B, layers in the backbone's order.

    Attributes:
        shapes: layer name → the shapes of A and B.
        sizes: how many numbers each factor has.
        n_parameters: P, their sum.

    Args:
        shapes: layer name → (n_in, n_out).
        rank: r ≥ 1.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], rank: int):
        self.shapes = {name: ((rank, n_in), (n_out, rank)) for name, (n_in, n_out) in shapes.items()}
        self.sizes = [math.prod(shape) for pair in self.shapes.values() for shape in pair]
        self.n_parameters = sum(self.sizes)

    def factors(self, theta: Tensor) -> dict[str, LowRank]:
        """Split θ […, P] into views: layer name → (A […, r, n_in], B […, n_out, r])."""
        pieces = iter(theta.split(self.sizes, dim=-1))
        return {
            name: LowRank(*(next(pieces).unflatten(-1, shape) for shape in pair)) for name, pair in self.shapes.items()
        }


def linear_shape(layer: Linear) -> tuple[int, int]:
    """Return (n_in, n_out) of a linear layer."""
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    return layer.in_features, layer.out_features


class _AdaptedLinear(torch.autograd.Function):
    """W x + b + scale · B A x, where the update's part of each activation and gradient is added as it is computed.

    Separate operations take three more passes over activations, and on a GPU four copies of the output: there a linear
    layer returns a view, and torch copies a view to change it in place.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        output = nn.functional.linear(x, weight, bias)
        hidden = bmm(_rows(x, A), A.mT)
        _rows(output, B).baddbmm_(hidden, B.mT, alpha=scale)
        ctx.save_for_backward(x, weight, hidden, A, B)
        ctx.scale = scale
        return output

    @staticmethod
    def backward(ctx, of_output: Tensor):
        x, weight, hidden, A, B = ctx.saved_tensors
        of_rows = _rows(of_output, B)
        of_hidden, of_B = bmm(of_rows, B), bmm(of_rows.mT, hidden)
        if ctx.scale != 1:
            of_hidden, of_B = of_hidden.mul_(ctx.scale), of_B.mul_(ctx.scale)
        of_A = bmm(of_hidden.mT, _rows(x, A))
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (of_output.reshape(-1, of_output.shape[-1]) @ weight).view(x.shape)
            _rows(of_x, A).baddbmm_(of_hidden, A)
        return of_x, None, None, of_A, of_B, None


def _rows(activations: Tensor, factors: Tensor) -> Tensor:
    """Reshape [R, T, n] or [R · T, n] to [R, T, n], one row for each document; a view if possible."""
    return activations.reshape(len(factors), -1, activations.shape[-1])


def adapted_linear(x: Tensor, weight: Tensor, bias: Tensor | None, lora: LowRank, scale: float) -> Tensor:
    """Return W x + b + scale · B A x for a frozen W and b.

    Args:
        x: [R, T, n_in], or [R·T, n_in] (OPT flattens before its feed-forward layers).
        weight: [n_out, n_in].
        lora: A [R, r, n_in] and B [R, n_out, r], one for each row; or A [r, n_in] and B [n_out, r] for all rows.
        scale: α/r.

    Raises:
        UserError: the rows of x are not those of the batch's documents.
    """
    A, B = lora
    if A.dim() == 2:
        A, B = A[None], B[None]
    else:
        _check_rows(x, A)
    return _AdaptedLinear.apply(x, weight, bias, A, B, scale)


def add_low_rank(output: Tensor, x: Tensor, lora: LowRank, scale: float) -> Tensor:
    """Return output + scale · B A x, for a layer whose own computation is not ours: a quantised one.

    If each row has its own factors, `output` is changed in place. A frozen linear layer does not need its output for the
    backward, so a copy would be wasted; if a layer does need it, autograd raises an error.

    Args:
        output: [R, T, n_out], or [R·T, n_out].
        x, lora, scale: as in `adapted_linear`.

    Raises:
        UserError: the rows of x are not those of the batch's documents.
    """
    A, B = lora
    if A.dim() == 2:
        hidden = nn.functional.linear(x, A)
        flat = addmm(output.flatten(0, -2), hidden.flatten(0, -2), B.mT, alpha=scale)
        return flat.view(output.shape)
    _check_rows(x, A)
    hidden = bmm(_rows(x, A), A.mT)
    # No needless view: autograd would copy the gradient for it.
    rows = output if output.dim() == 3 else output.view(len(A), -1, output.shape[-1])
    rows.baddbmm_(hidden, B.mT, alpha=scale)
    return output


def _check_rows(x: Tensor, A: Tensor) -> None:
    if len(x) % len(A) or (x.dim() > 2 and len(x) != len(A)):
        raise UserError(
            f"lora.target_modules: a layer was given {len(x)} rows for {len(A)} documents, so a row's document is "
            "unknown (a routed expert?); name other layers"
        )
