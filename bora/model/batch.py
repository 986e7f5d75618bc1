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
    document: NotRequired[Tensor]  # [R] which of a split's N documents
    share: NotRequired[Tensor]  # [R] of a document, where some are in several pieces
    attention_mask: NotRequired[Tensor]  # [R, T], where padding is scored
    scored: NotRequired[Tensor]  # [S] places in [R · T] of the scored tokens
    units: NotRequired[Tensor]  # [R, L] rows of the matrix for levels above the task, where there are any
    present: NotRequired[Tensor]  # [U] the rows that it needs, ascending: its tasks, then its units
    place: NotRequired[Tensor]  # [R], or [R, 1 + L]: each document's places in `present`


class Places(NamedTuple):
    """Which rows of the matrix a batch of R documents needs, and which each has.

    Attributes:
        present: [U] the rows, ascending, as a sparse gradient's must be: tasks, then units of levels above them.
        place: [R] the place in `present` of each document's task; with L levels [R, 1 + L], its units' too.
    """

    present: Tensor
    place: Tensor


def find_places(task: Tensor, units: Tensor | None = None) -> Places:
    """Find the places of documents of these tasks, [R], and of their units, [R, L]. On a GPU this waits for it."""
    return Places(*document_rows(task, units).unique(return_inverse=True))


def document_rows(task: Tensor, units: Tensor | None = None) -> Tensor:
    """Return the matrix's rows of documents of these tasks, [R]; with units, [R, L], all of a document's: [R, 1 + L]."""
    return task if units is None else torch.cat([task[:, None], units], dim=1)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch that lies on the CPU with its tensors on a device, without waiting for what the device has to do."""
    moved = {
        k: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for k, value in batch.items()
    }
    return cast(Batch, moved)
