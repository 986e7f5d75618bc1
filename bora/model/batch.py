"""A batch of documents, as the model takes it."""

from typing import NamedTuple, NotRequired, TypedDict, cast

import torch
from torch import Tensor


class Batch(TypedDict):
    """R documents, padded on the right to T tokens.

    `scored`, `present` and `place` follow from `labels` and `task`. Whoever makes the batch on the CPU gives them
    along, since to find them on a GPU, how many there are, is to wait for it.
    """

    input_ids: Tensor  # [R, T]
    labels: Tensor  # [R, T], IGNORE on padding and prompt
    task: Tensor  # [R]
    batches: int  # K, that an epoch has
    share: NotRequired[Tensor]  # [R] of a document, where some are in several pieces
    attention_mask: NotRequired[Tensor]  # [R, T], where padding is scored
    scored: NotRequired[Tensor]  # [S] places in [R · T] of the scored tokens
    present: NotRequired[Tensor]  # [U] the tasks in it, ascending
    place: NotRequired[Tensor]  # [R] each document's task's place in `present`


class Places(NamedTuple):
    """Which tasks are in a batch of R documents, and whose each is.

    Attributes:
        present: [U] the tasks, ascending, as a sparse gradient's rows must be.
        place: [R] the place in `present` of each document's task.
    """

    present: Tensor
    place: Tensor


def find_places(task: Tensor) -> Places:
    """Find the places of documents of these tasks, [R]. On a GPU this waits for it."""
    return Places(*task.unique(return_inverse=True))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on a device."""
    moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    return cast(Batch, moved)
