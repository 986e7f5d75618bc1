"""A batch of documents, as the model takes it."""

from typing import NotRequired, TypedDict, cast

import torch
from torch import Tensor


class Batch(TypedDict):
    """R documents, padded on the right to T tokens."""

    input_ids: Tensor  # [R, T]
    labels: Tensor  # [R, T], IGNORE on padding and prompt
    task: Tensor  # [R]
    batches: int  # K, that an epoch has
    attention_mask: NotRequired[Tensor]  # [R, T], where padding is scored


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on a device."""
    moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    return cast(Batch, moved)
