"""θ_d and Θ on disk: layer by layer, so that they can be read without the layout, whichever form saved them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Suffixes of the names: A_mean and B_mean belong to Θ, A and B to θ_d, A_offset and B_offset to δ_d.
MEAN, THETA, OFFSET = "_mean", "", "_offset"


class Saved(NamedTuple):
    """What a form saved: Θ [P], and θ or δ [D, P] or neither."""

    mean: Tensor
    theta: Tensor | None
    offset: Tensor | None

    @property
    def deviations(self) -> Tensor | None:
        """θ_d − Θ, [D, P]; None if all tasks are Θ."""
        return self.offset if self.theta is None else self.theta - self.mean


def disk_names(layers: Sequence[str], suffix: str) -> list[str]:
    """Return the names on disk of all layers' factors of one kind, in the layout's order."""
    # Dots in a layer's path are written as slashes, since a dot in a state dict separates modules.
    return [f"adapters.stacks.{layer.replace('.', '/')}.{factor}{suffix}" for layer in layers for factor in "AB"]


def read_saved(state: Mapping[str, Tensor], layers: Sequence[str]) -> Saved:
    """Read what any form saved.

    Args:
        state: from `Adapters.saved`.
        layers: the layers' names, in the layout's order.

    Raises:
        KeyError: the state has no Θ for these layers.
    """
    names = [disk_names(layers, suffix) for suffix in (MEAN, THETA, OFFSET)]
    theta, offset = (_join(state, n) if all(name in state for name in n) else None for n in names[1:])
    return Saved(_join(state, names[0]), theta, offset)


def _join(state: Mapping[str, Tensor], names: list[str]) -> Tensor:
    """Join the factors of these names into [P] or [D, P]."""
    return torch.cat([state[name].flatten(-2) for name in names], dim=-1)
