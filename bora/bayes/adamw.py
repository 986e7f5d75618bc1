"""AdamW that touches only the rows of the [D, P] matrix whose tasks are in the batch.

A dense AdamW visits all D tasks in every step, to no use for those that have no gradient. Here a row and its two
moments are left alone until its task is in a batch, and the moments' bias is corrected by the row's own
number of steps: at τ = 0 each task is trained exactly as by an AdamW of its own that steps when the task has data.
"""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw


class RowwiseAdamW(torch.optim.Optimizer):
    """AdamW without weight decay, row by row where a gradient is sparse.

    Args:
        params: dense gradients are handled as by torch.optim.AdamW; a parameter [D, …] may instead have a
            sparse one over its rows.
        lr, betas, eps: AdamW's.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    # torch declares two overloads, with and without a closure.
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parts = [part for p in group["params"] if p.grad is not None for part in self._parts(p, p.grad)]
            if not parts:
                continue
            params, grads, exp_avgs, exp_avg_sqs, steps = (
                list(column) for column in zip(*parts, strict=True)
            )
            beta1, beta2 = group["betas"]
            adamw(
                params, grads, exp_avgs, exp_avg_sqs, [], steps, fused=True, amsgrad=False, beta1=beta1, beta2=beta2,
                lr=group["lr"], weight_decay=0.0, eps=group["eps"], maximize=False,
            )  # fmt: skip
        return loss

    def _parts(
        self, p: nn.Parameter, gradient: Tensor
    ) -> Iterable[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """Views (parameter, gradient, first and second moment, steps): of p, or of each of its rows with a gradient."""
        state, rows = self.state[p], gradient.is_sparse
        if not state:
            shape = (len(p),) if rows else ()
            state["step"] = torch.zeros(shape, dtype=torch.float32, device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        if not rows:
            return [(p, gradient, state["exp_avg"], state["exp_avg_sq"], state["step"])]
        gradient = gradient.coalesce()
        index, values = gradient.indices()[0].tolist(), gradient.values()
        return [
            (p[d], values[i], state["exp_avg"][d], state["exp_avg_sq"][d], state["step"][d])
            for i, d in enumerate(index)
        ]


def sum_over_processes(gradient: Tensor) -> Tensor:
    """The sum of all processes' sparse gradients, each of its own rows.

    Args:
        gradient: sparse [D, P], of the rows that this process's documents need.
    """
    gradient = gradient.coalesce()
    mine, values = gradient.indices()[0], gradient.values()
    present = torch.zeros(gradient.shape[0], dtype=torch.uint8, device=values.device)
    present[mine] = 1
    dist.all_reduce(present, dist.ReduceOp.MAX)
    rows = present.nonzero()[:, 0]
    total = values.new_zeros(len(rows), values.shape[1])
    total[torch.searchsorted(rows, mine)] = values
    dist.all_reduce(total)
    return torch.sparse_coo_tensor(
        rows[None], total, gradient.shape, is_coalesced=True, check_invariants=False
    )
