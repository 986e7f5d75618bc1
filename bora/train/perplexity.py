"""Perplexity by task and overall: exact over processes; as the published code averages it; and along the deviations."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from bora.bayes.shrinkage import Profile


class TaskPerplexity(Metric):
    """exp(Σ nll / Σ scored tokens), by task and over all tasks.

    Sums are kept in float64 and added over processes, so the result does not depend on how the
    documents were cut into batches or shared out.
    """

    full_state_update = False
    nats: Tensor
    tokens: Tensor

    def __init__(self, n_tasks: int):
        super().__init__()
        zeros = torch.zeros(n_tasks, dtype=torch.float64)
        self.add_state("nats", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("tokens", zeros.clone(), dist_reduce_fx="sum")

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


class PairedDifference(Metric):
    """How much lower the NLL of a task's documents is under one model than under another, with its standard error."""

    full_state_update = False
    sums: Tensor

    def __init__(self, n_tasks: int):
        super().__init__()
        # Of documents, their difference d and scored tokens t: Σ 1, Σ d, Σ t, Σ d², Σ d t, Σ t².
        self.add_state("sums", torch.zeros(6, n_tasks, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, other: Tensor, scored: Tensor, task: Tensor) -> None:
        """Add documents: the NLL under both models, [R] nats; scored [R] tokens; task [R] indices."""
        d, t = (other - nll).detach().double(), scored.double()
        self.sums.index_add_(1, task, torch.stack([torch.ones_like(d), d, t, d * d, d * t, t * t]))

    def compute(self) -> dict[str, Tensor]:
        """Return `difference` and `error`, nats a token, [D]: a ratio of sums, and its error over documents; `tokens`.

        A task with one document has no error: nan.
        """
        n, d, t, dd, dt, tt = self.sums
        ratio = d / t
        squares = (dd - 2 * ratio * dt + ratio**2 * tt).clamp(min=0)
        error = (n / (n - 1) * squares).sqrt() / t
        return {"tokens": t, "difference": ratio, "error": torch.where(n > 1, error, torch.nan)}


class ShrunkPerplexity(Metric):
    """The NLL by task under Θ + c (θ_d − Θ), at several c.

    Args:
        n_scales: how many.
    """

    full_state_update = False
    nats: Tensor
    moments: Tensor
    documents: Tensor
    tokens: Tensor

    def __init__(self, n_tasks: int, n_scales: int):
        super().__init__()
        shapes = {"nats": (n_scales, n_tasks), "moments": (n_scales, n_scales, n_tasks)}
        for name, shape in {**shapes, "documents": (n_tasks,), "tokens": (n_tasks,)}.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, scored: Tensor, task: Tensor) -> None:
        """Add documents: nll [S, R] nats, scored [R] tokens, task [R] indices."""
        nll = nll.detach().double()
        gain = nll - nll[0]
        self.nats.index_add_(1, task, nll)
        self.moments.index_add_(2, task, gain[:, None] * gain[None])
        self.documents.index_add_(0, task, torch.ones_like(gain[0]))
        self.tokens.index_add_(0, task, scored.double())

    def compute(self) -> Tensor:
        """Return the NLL at each c over all tasks, [S] nats a token."""
        return self.nats.sum(dim=1) / self.tokens.sum()

    def profile(self, scales: Sequence[float]) -> Profile:
        """Give the sums over all processes. Every process must ask for them."""
        with self.sync_context(distributed_available=torch.distributed.is_initialized):
            sums = (t.cpu().clone() for t in (self.nats, self.moments, self.documents, self.tokens))
            return Profile(torch.tensor(scales, dtype=torch.float64), *sums)


class BatchPerplexity(Metric):
    """The published code's figure: exp of the mean over batches of a batch's mean over tasks.

    A batch gives each task in it one number, the mean NLL of its scored tokens there; short
    documents and small batches weigh as much as long and large ones. Tables 1 and 2 of the paper
    are this figure on validation documents.
    """

    full_state_update = False
    task_nll: Tensor
    task_batches: Tensor
    nll: Tensor
    batches: Tensor

    def __init__(self, n_tasks: int):
        super().__init__()
        for name in ("task_nll", "task_batches"):
            self.add_state(name, torch.zeros(n_tasks, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("nll", "batches"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

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
        """Return `nll` and `perplexity` over all; `task_perplexity` [D]."""
        nll = self.nll / self.batches
        return {"nll": nll, "perplexity": nll.exp(), "task_perplexity": (self.task_nll / self.task_batches).exp()}
