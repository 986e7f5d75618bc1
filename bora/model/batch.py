"""A batch of documents, in the form that the model takes."""

from typing import NamedTuple, NotRequired, TypedDict, cast

import torch
from torch import Tensor


class Batch(TypedDict):
    """R documents, padded on the right to T tokens.

    `scored`, `present` and `place` follow from `labels` and `task`. They are computed with the batch on the CPU, since
    computing them on a GPU would wait for it: their sizes depend on the data.
    """

    input_ids: Tensor  # [R, T]
    labels: Tensor  # [R, T], IGNORE on padding and prompt
    task: Tensor  # [R]
    batches: int  # K, batches in an epoch
    document: NotRequired[Tensor]  # [R] index among the split's N documents
    share: NotRequired[Tensor]  # [R] share of a document, if some are in several pieces
    attention_mask: NotRequired[Tensor]  # [R, T], if padding is scored
    scored: NotRequired[Tensor]  # [S] places in [R · T] of the scored tokens
    units: NotRequired[Tensor]  # [R, L] rows of the matrix for the levels above the task, if there are any
    present: NotRequired[Tensor]  # [U] the matrix's rows that it needs, ascending: its tasks, then its units
    place: NotRequired[Tensor]  # [R], or [R, 1 + L]: each document's places in `present`


class Places(NamedTuple):
    """Which rows of the matrix a batch of R documents needs, and which of them each document has.

    Attributes:
        present: [U] the rows, ascending, as a sparse gradient's must be: tasks, then units of levels above them.
        place: [R] the place in `present` of each document's task; with L levels [R, 1 + L], its units' too.
    """

    present: Tensor
    place: Tensor


def find_places(task: Tensor, units: Tensor | None = None) -> Places:
    """Find the places of documents with these tasks, [R], and units, [R, L]. On a GPU this waits for it."""
    return Places(*document_rows(task, units).unique(return_inverse=True))


def document_rows(task: Tensor, units: Tensor | None = None) -> Tensor:
    """Return the matrix's row of each document, [R], from its task; with units [R, L], all its rows, [R, 1 + L]."""
    return task if units is None else torch.cat([task[:, None], units], dim=1)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its tensors moved from the CPU to a device, without waiting for the device's queued work."""
    moved = {
        k: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for k, value in batch.items()
    }
    return cast(Batch, moved)
