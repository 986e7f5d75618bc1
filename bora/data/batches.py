"""Documents to padded batches, in an order that the seed and the epoch decide."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bora.data.encoding import Encoded
from bora.model.likelihood import IGNORE


class Documents(Dataset):
    """The documents of one split; an item is a whole batch, asked for by a list of indices."""

    def __init__(
        self, documents: Sequence[Encoded], tasks: Sequence[int], pad_id: int, score_padding: bool = False
    ):
        """
        Args:
            documents, tasks: the tokens and the task of each document.
            pad_id: token id that fills rows on the right.
            score_padding: label the padding too, as the published code does; its result then
                depends on the batch, and on an attention mask, which is given along.
        """
        self.documents, self.tasks = list(documents), list(tasks)
        self.pad_id, self.score_padding = pad_id, score_padding

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, batch: tuple[list[int], int]) -> dict[str, Tensor | int]:
        """Pad on the right to the batch's longest document.

        Args:
            batch: indices of R documents, and B, how many all processes together have in it.

        Returns:
            input_ids [R, T]; labels [R, T], IGNORE on padding and prompt; task [R];
            batch_documents B; where padding is scored, attention_mask [R, T] too.
        """
        indices, batch_documents = batch
        width = max(len(self.documents[i].ids) for i in indices)
        input_ids = torch.full((len(indices), width), self.pad_id)
        labels = torch.full((len(indices), width), self.pad_id if self.score_padding else IGNORE)
        for row, i in enumerate(indices):
            document = self.documents[i]
            ids = torch.from_numpy(document.ids).long()
            input_ids[row, : len(ids)] = ids
            labels[row, : len(ids)] = ids
            labels[row, : document.n_prompt] = IGNORE
        tensors = {
            "input_ids": input_ids,
            "labels": labels,
            "task": torch.tensor([self.tasks[i] for i in indices]),
            "batch_documents": batch_documents,
        }
        if self.score_padding:
            lengths = torch.tensor([len(self.documents[i].ids) for i in indices])
            tensors["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
        return tensors


class Batches(Sampler):
    """Index lists for Documents: every document once an epoch, shared out over processes.

    Training shuffles uniformly over all tasks' documents. Each of `n_processes` takes every
    n_processes-th document of each batch, so that all of them together see the batch that one
    process alone would see. No document is repeated or left out.
    """

    def __init__(
        self,
        n_documents: int,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        n_processes: int = 1,
        order: Sequence[int] | None = None,
    ):
        """
        Args:
            batch_size: documents in a batch, all processes together.
            shuffle: a new order each epoch, from (seed, epoch).
            order: a fixed order of the documents instead.
        """
        self.n_documents, self.batch_size, self.shuffle = n_documents, batch_size, shuffle
        self.seed, self.rank, self.n_processes = seed, rank, n_processes
        self.order = list(range(n_documents)) if order is None else list(order)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self.epoch = epoch

    def _batches(self) -> list[list[int]]:
        order = self.order
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order).tolist()
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        # Every process must have a document in every batch, or their steps would not match.
        if len(batches) > 1 and len(batches[-1]) < self.n_processes:
            tail = batches.pop()
            batches[-1] = batches[-1] + tail
        return batches

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[tuple[list[int], int]]:
        for batch in self._batches():
            mine = batch[self.rank :: self.n_processes]
            if mine:
                yield mine, len(batch)


def loader(documents: Documents, batches: Batches) -> DataLoader:
    """A DataLoader whose sampler hands out whole batches."""
    return DataLoader(documents, sampler=batches, batch_size=None)
