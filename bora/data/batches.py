"""Turn documents into padded batches: for training in an order drawn from seed and epoch, for evaluation by length."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bora.data.pieces import Encoded
from bora.errors import UserError
from bora.lib.console import progress
from bora.model.batch import Batch, find_places, to_device
from bora.model.likelihood import IGNORE, scored_places


class Documents(Dataset[Batch]):
    """The documents of one split. An item is a whole batch, selected by a list of indices."""

    def __init__(
        self,
        documents: Sequence[Encoded],
        tasks: Sequence[int],
        scored_padding: int | None = None,
        units: Sequence[Sequence[int]] | None = None,
    ):
        """
        Args:
            documents, tasks: the tokens and the task of each document, or of each piece of one.
            units: each one's rows of the matrix for the levels above the task; see bora.bayes.levels.
            scored_padding: the token id of padding, which is then labelled too, as in the published code; results then
                depend on the batch, and on the attention mask that it has. None: padding is not labelled, and no
                labelled token sees its id, 0.
        """
        self.documents, self.tasks, self.units = list(documents), list(tasks), units
        # Each piece of a document in three adds a third of what the document adds of the prior.
        _, self._first, self._whose, pieces = np.unique(
            [d.document for d in documents], return_index=True, return_inverse=True, return_counts=True
        )
        self.n_documents = len(pieces)
        self.shares = 1 / pieces[self._whose] if len(pieces) < len(self.documents) else None
        self.scored_padding = scored_padding

    def __len__(self) -> int:
        return len(self.documents)

    def take(self, indices: Sequence[int]) -> "Documents":
        """Return those at these indices, which must have all pieces of a document or none."""
        units = None if self.units is None else [self.units[i] for i in indices]
        return Documents(
            [self.documents[i] for i in indices], [self.tasks[i] for i in indices], self.scored_padding, units
        )

    def rows(self) -> Tensor:
        """Return each document's rows of the matrix, [N, 1 + L]: its task, and its units of the levels above."""
        units = [()] * len(self.documents) if self.units is None else self.units
        return torch.tensor([[self.tasks[i], *units[i]] for i in self._first])

    def __getitem__(self, batch: tuple[list[int], int]) -> Batch:
        """Return a batch, padded on the right to its longest document.

        Args:
            batch: indices of R documents, and K, the number of batches in an epoch.
        """
        indices, batches = batch
        documents = [self.documents[i] for i in indices]
        lengths = np.array([len(d.ids) for d in documents])
        real = np.arange(lengths.max()) < lengths[:, None]
        pad = self.scored_padding
        input_ids = np.full(real.shape, 0 if pad is None else pad, dtype=np.int64)
        input_ids[real] = np.concatenate([d.ids for d in documents])
        labels = np.where(real, input_ids, IGNORE if pad is None else pad)
        labels[real] = np.where(np.concatenate([d.scored for d in documents]), labels[real], IGNORE)
        task = torch.tensor([self.tasks[i] for i in indices])
        units = None if self.units is None else torch.tensor([list(self.units[i]) for i in indices])
        present, place = find_places(task, units)
        padded: Batch = {
            "input_ids": torch.from_numpy(input_ids),
            "labels": torch.from_numpy(labels),
            "task": task,
            "document": torch.from_numpy(self._whose[indices]),
            "batches": batches,
            "scored": scored_places(torch.from_numpy(labels)),
            "present": present,
            "place": place,
        }
        if units is not None:
            padded["units"] = units
        if self.shares is not None:
            padded["share"] = torch.from_numpy(self.shares[indices]).float()
        if pad is not None:
            padded["attention_mask"] = torch.from_numpy(real.astype(np.int64))
        return padded

    def by_length(self, batch_size: int, device: torch.device, what: str) -> Iterator[tuple[list[int], Batch]]:
        """Yield batches of documents of similar length on a device, each with its indices; see `by_length`."""
        for some in by_length([len(d.ids) for d in self.documents], batch_size, what):
            yield some, to_device(self[some, 1], device)


def by_length(lengths: Sequence[int], batch_size: int, what: str) -> Iterator[list[int]]:
    """Yield each index once, similar lengths together so that little is padded; `what` names the progress bar."""
    order = np.argsort(lengths, kind="stable").tolist()
    for start in progress(range(0, len(order), batch_size), what):
        yield order[start : start + batch_size]


class Batches(Sampler):
    """Index lists for Documents: every document once per epoch, step by step.

    An epoch has ⌈N / (batch_size · accumulate)⌉ optimiser steps in every order:

    - bucketed: documents of similar length together, in steps of similar numbers of tokens, in random order, so that
      little is padded and no step takes much longer than another;
    - shuffled: as many documents in each step, drawn uniformly;
    - given: the documents in a given order, the same in every epoch.

    A step's documents are divided among its `accumulate` batches, and a batch's among the processes, so
    that together they are the step of one larger batch on one process. No document is repeated or left out.
    """

    JITTER = 0.1  # lengths change by up to this share before sorting, so that neighbours vary by epoch

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        order: str | Sequence[int] = "bucketed",
        seed: int = 0,
        accumulate: int = 1,
        rank: int = 0,
        n_processes: int = 1,
    ):
        """
        Args:
            lengths: tokens of each document.
            batch_size: documents in a batch (if bucketed: on average), all processes together.
            order: bucketed or shuffled, drawn for each epoch from (seed, epoch); or the documents' indices.
            accumulate: number of batches whose gradients make one step.
        """
        self.lengths, self.order, self.seed = np.asarray(lengths), order, seed
        self.accumulate, self.rank, self.n_processes, self.epoch = accumulate, rank, n_processes, 0
        self.begin_at, self.given = 0, 0  # batches to skip in the next epoch; batches given so far in this one
        # Every process must have a document in every batch, or their steps would not match, so a last step
        # with too few documents is merged into the one before.
        self.least = accumulate * n_processes
        self.documents_a_step = max(batch_size * accumulate, self.least)
        n_spare = len(self.lengths) + self.documents_a_step - self.least
        self.n_steps = max(1, n_spare // self.documents_a_step)

    def check_trainable(self) -> None:
        """Raise a UserError if there are too few documents for each process to have one in each batch of a step."""
        if len(self.lengths) < self.least:
            raise UserError(
                f"trainer.accumulate_grad_batches={self.accumulate} on {self.n_processes} device(s) needs as many "
                f"training documents, but there are {len(self.lengths)}; give fewer"
            )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this at the start of each."""
        self.epoch = epoch

    def _steps(self) -> list[np.ndarray]:
        n, n_steps = len(self.lengths), self.n_steps
        ends = self.documents_a_step * np.arange(1, n_steps)
        if not isinstance(self.order, str):
            return np.split(np.asarray(self.order), ends)
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.order == "shuffled":
            return np.split(rng.permutation(n), ends)
        order = np.argsort(self.lengths * rng.uniform(1 - self.JITTER, 1 + self.JITTER, n))
        tokens = self.lengths[order].cumsum()
        ends = np.searchsorted(tokens, tokens[-1] * np.arange(1, n_steps) / n_steps)
        # Give every step at least `least` documents, however few or long they are.
        for i in range(n_steps - 1):
            ends[i] = max(ends[i], (ends[i - 1] if i else 0) + self.least)
        for i in reversed(range(n_steps - 1)):
            ends[i] = min(ends[i], (ends[i + 1] if i < n_steps - 2 else n) - self.least)
        steps = np.split(order, ends)
        return [steps[i] for i in rng.permutation(n_steps)]

    def __len__(self) -> int:
        return self.n_steps * self.accumulate

    def __iter__(self) -> Iterator[tuple[list[int], int]]:
        begin_at, self.begin_at = self.begin_at, 0
        batches = [batch for step in self._steps() for batch in np.array_split(step, self.accumulate)]
        for i in range(begin_at, len(batches)):
            self.given = i + 1
            mine = batches[i][self.rank :: self.n_processes].tolist()
            if mine:
                yield mine, len(self)


class ResumableLoader(DataLoader[Batch]):
    """A DataLoader that can resume within an epoch; Lightning saves its state in checkpoints."""

    sampler: Batches
    dataset: Documents

    def state_dict(self) -> dict[str, int]:
        return {"given": self.sampler.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        # After its last batch an epoch is over.
        self.sampler.begin_at = state["given"] % len(self.sampler)


def loader(documents: Documents, batches: Batches, pinned: bool = False) -> ResumableLoader:
    """Make a DataLoader whose sampler selects whole batches.

    Args:
        pinned: put batches in pinned memory, from which a GPU copies asynchronously.
    """
    return ResumableLoader(documents, sampler=batches, batch_size=None, pin_memory=pinned)
