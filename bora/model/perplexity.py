"""Perplexity per task and overall, exact over processes."""

import torch
from torch import Tensor
from torchmetrics import Metric


class TaskPerplexity(Metric):
    """exp(Σ nll / Σ scored tokens), by task and over all tasks.

    Sums are kept in float64 and added over processes, so the result does not depend on how the
    documents were cut into batches or shared out.
    """

    full_state_update = False

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
        """Nats a scored token and perplexity: `nll`, `perplexity` over all tokens, `task_nll`,
        `task_perplexity` [D], and `perplexity_macro`, the plain mean over tasks."""
        task_nll = self.nats / self.tokens
        nll = self.nats.sum() / self.tokens.sum()
        return {
            "nll": nll,
            "perplexity": nll.exp(),
            "task_nll": task_nll,
            "task_perplexity": task_nll.exp(),
            "perplexity_macro": task_nll.exp().mean(),
        }
