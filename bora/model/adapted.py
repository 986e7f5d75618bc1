"""Linear layers that add the current batch's low-rank updates to their output."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bora.model.lora import Linear, LowRank, adapted_linear, add_low_rank

# A target layer's attribute: the current batch's Update, or None. It is on the layer itself, so that all blocks run the
# same code and one compilation serves them all.
UPDATE = "bora_update"


class Update(NamedTuple):
    """What a target layer adds to its output: scale · B A dropout(x).

    Attributes:
        lora: A and B, one for each row or one for all.
        scale: α/r.
        dropout: probability of zeroing each number of x; the others are scaled up to keep the mean.
    """

    lora: LowRank
    scale: float
    dropout: float


# Subclasses, since torch would compile each block separately if each layer had its own `forward`.
class _AdaptedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return _run_adapted(self, x, self.weight, super().forward)


class _AdaptedConv1D(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        return _run_adapted(self, x, self.weight.T, super().forward)


ADAPTED: dict[type, type] = {nn.Linear: _AdaptedLinear, Conv1D: _AdaptedConv1D}


def adapt_layer(layer: Linear) -> None:
    """Make a layer add its UPDATE, if it has one, to its output. Several backbones may adapt the same model."""
    if hasattr(layer, UPDATE):
        return
    setattr(layer, UPDATE, None)
    if type(layer) in ADAPTED and type(layer.weight.data) is Tensor:
        layer.__class__ = ADAPTED[type(layer)]
    else:
        layer.register_forward_hook(_add_update)


@contextmanager
def updated(updates: Mapping[nn.Module, Update]) -> Iterator[None]:
    """Give target layers these updates inside the context."""
    for layer, update in updates.items():
        setattr(layer, UPDATE, update)
    try:
        yield
    finally:
        for layer in updates:
            setattr(layer, UPDATE, None)


def _run_adapted(layer: Linear, x: Tensor, weight: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Run a target layer with its update; `run` is its own forward."""
    update: Update | None = getattr(layer, UPDATE)
    if update is None or update.dropout:
        output = run(x)
        return output if update is None else _add(update, x, output)
    return adapted_linear(x, weight, layer.bias, update.lora, update.scale)


def _add_update(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    """Add a target layer's update to its output; a forward hook, where None leaves the output unchanged."""
    update: Update | None = getattr(layer, UPDATE)
    return None if update is None else _add(update, args[0], output)


def _add(update: Update, x: Tensor, output: Tensor) -> Tensor:
    x = nn.functional.dropout(x, update.dropout) if update.dropout else x
    return add_low_rank(output, x, update.lora, update.scale)
