"""θ_d and Θ on disk: layer by layer, to be read without knowing the layout, and whatever form saved them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Suffixes of the names: A_mean and B_mean are Θ's; A and B are θ_d's, A_offset and B_offset δ_d's.
MEAN, THETA, OFFSET = "_mean", "", "_offset"


class Saved(NamedTuple):
    """What some form saved, read: Θ [P], and θ or δ [D, P] or neither."""

    mean: Tensor
    theta: Tensor | None
    offset: Tensor | None

    @property
    def deviations(self) -> Tensor | None:
        """[D, P] θ_d − Θ; None where all tasks are Θ."""
        return self.offset if self.theta is None else self.theta - self.mean


def disk_names(layers: Sequence[str], suffix: str) -> list[str]:
    """Return the names on disk of all the layers' factors of one kind, in the layout's order."""
    # The dots of a layer's path are written as slashes: a dot divides modules.
    return [f"adapters.stacks.{layer.replace('.', '/')}.{factor}{suffix}" for layer in layers for factor in "AB"]


def read_saved(state: Mapping[str, Tensor], layers: Sequence[str]) -> Saved:
    """Read what any form saved.

    Args:
        state: from `Adapters.saved`.
        layers: their names, in the layout's order.

    Raises:
        KeyError: it has no Θ of these layers.
    """
    names = [disk_names(layers, suffix) for suffix in (MEAN, THETA, OFFSET)]
    theta, offset = (_join(state, n) if all(name in state for name in n) else None for n in names[1:])
    return Saved(_join(state, names[0]), theta, offset)


def _join(state: Mapping[str, Tensor], names: list[str]) -> Tensor:
    """[P] or [D, P] from the factors of those names."""
    return torch.cat([state[name].flatten(-2) for name in names], dim=-1)
