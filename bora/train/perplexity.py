"""Perplexity by task and overall, and NLL by document, exact over processes; and the published code's average."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from bora.bayes.shrinkage import Profile


class Sums(Metric):
    """Sums in float64 over all processes, so that results do not depend on how documents were batched or distributed."""

    full_state_update = False

    def __init__(self, **shapes: tuple[int, ...]):
        super().__init__()
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")


class TaskPerplexity(Sums):
    """exp(Σ nll / Σ scored tokens), by task and over all tasks."""

    nats: Tensor
    tokens: Tensor

    def __init__(self, n_tasks: int):
        super().__init__(nats=(n_tasks,), tokens=(n_tasks,))

    def update(self, nll: Tensor, scored: Tensor, task: Tensor) -> None:
        """Add documents: nll [R] nats, scored [R] tokens, task [R] indices."""
        self.nats.index_add_(0, task, nll.detach().double())
        self.tokens.index_add_(0, task, scored.double())

    def compute(self) -> dict[str, Tensor]:
        """Return nats a scored token and perplexity: `nll`, `perplexity` over all tokens, `task_nll`,
        `task_perplexity` and scored `task_tokens` [D], and `perplexity_macro`, the plain mean over tasks."""
        task_nll = self.nats / self.tokens
        nll = self.nats.sum() / self.tokens.sum()
        return {
            "nll": nll,
            "perplexity": nll.exp(),
            "task_nll": task_nll,
            "task_tokens": self.tokens,
            "task_perplexity": task_nll.exp(),
            "perplexity_macro": task_nll.exp().mean(),
        }


class DocumentNLL(Sums):
    """The NLL of N documents under M models, summed over each document's pieces and over processes."""

    nats: Tensor
    tokens: Tensor

    def __init__(self, n_models: int, n_documents: int):
        super().__init__(nats=(n_models, n_documents), tokens=(n_documents,))

    def update(self, nll: Tensor, scored: Tensor, document: Tensor) -> None:
        """Add documents or pieces of them: nll [M, R] nats, scored [R] tokens, document [R] indices."""
        self.nats.index_add_(1, document, nll.detach().double())
        self.tokens.index_add_(0, document, scored.double())

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return what `found` does, except that torchmetrics makes a tensor of one number a scalar."""
        return self.nats, self.tokens

    def found(self) -> tuple[Tensor, Tensor]:
        """Return nats [M, N] and scored tokens [N], on the CPU. Every process must make the first call."""
        nats, tokens = self.compute()
        return nats.reshape(self.nats.shape).cpu(), tokens.reshape(self.tokens.shape).cpu()


class Groups(NamedTuple):
    """Documents by task, or by unit of a level.

    Attributes:
        of: [N] each document's group.
        n: number of groups.
    """

    of: Tensor
    n: int

    def sum(self, values: Tensor) -> Tensor:
        """Sum over each group's documents: [..., N] → [..., n]."""
        return values.new_zeros(*values.shape[:-1], self.n).index_add_(-1, self.of, values)


def paired_difference(difference: Tensor, tokens: Tensor, groups: Groups) -> dict[str, Tensor]:
    """Average a difference of NLL over each group's documents, as a ratio of sums, with its standard error.

    Args:
        difference: [N] nats.
        tokens: [N] scored tokens of each document.

    Returns:
        `tokens` [n]; `difference` and `error` [n], nats a token. The error is nan for a group of one document.
    """
    n, d, t = (groups.sum(values) for values in (torch.ones_like(tokens), difference, tokens))
    ratio = d / t
    squares = groups.sum((difference - ratio[groups.of] * tokens).square())
    error = (n / (n - 1) * squares).sqrt() / t
    return {"tokens": t, "difference": ratio, "error": torch.where(n > 1, error, torch.nan)}


def make_profile(scales: Sequence[float], nats: Tensor, tokens: Tensor, groups: Groups) -> Profile:
    """Sum the NLL of documents under Θ + c (θ_d − Θ), at several c, for `bora.bayes.shrinkage`.

    Args:
        scales: S values of c.
        nats: [S, N] NLL of each document.
        tokens: [N] scored tokens of each document.
    """
    gain = nats - nats[0]
    moments = torch.stack([groups.sum(gain * row) for row in gain])
    n_documents = groups.sum(torch.ones_like(tokens))
    return Profile(
        torch.tensor(scales, dtype=torch.float64), groups.sum(nats), moments, n_documents, groups.sum(tokens)
    )


class BatchPerplexity(Sums):
    """The published code's figure: exp of the mean over batches of a batch's mean over tasks.

    A batch gives each of its tasks one number, the mean NLL of the task's scored tokens there, so short
    documents and small batches count as much as long and large ones. Tables 1 and 2 of the paper
    show this figure for validation documents.
    """

    task_nll: Tensor
    task_batches: Tensor
    nll: Tensor
    batches: Tensor

    def __init__(self, n_tasks: int):
        super().__init__(task_nll=(n_tasks,), task_batches=(n_tasks,), nll=(), batches=())

    def update(self, nll: Tensor, scored: Tensor, task: Tensor) -> None:
        """Add a batch: nll [R] nats, scored [R] tokens, task [R] indices."""
        nats = torch.zeros_like(self.task_nll).index_add_(0, task, nll.detach().double())
        tokens = torch.zeros_like(self.task_nll).index_add_(0, task, scored.double())
        present = tokens > 0
        means = nats[present] / tokens[present]
        self.task_nll[present] += means
        self.task_batches += present
        self.nll += means.mean()
        self.batches += 1

    def compute(self) -> dict[str, Tensor]:
        """Return `nll` and `perplexity` over all tasks, and `task_perplexity` [D]."""
        nll = self.nll / self.batches
        return {"nll": nll, "perplexity": nll.exp(), "task_perplexity": (self.task_nll / self.task_batches).exp()}
