"""MAP: AdamW that touches only the rows of the [D, P] matrix whose tasks are in the batch; clipping of such gradients.

A dense AdamW visits all D tasks in every step, though most have no gradient. Here a row and its two moments stay
unchanged until its task is in a batch, and the moments' bias is corrected by the row's own
number of steps: at τ = 0 each task is trained exactly as by its own AdamW that steps when the task has data.
On a CPU the rows are updated in place. On any other device they are gathered and written back, since indexing them one
by one would wait for the device (bora.bayes.rows has the same two ways).

At a constant learning rate the last values are the optimum plus the noise of the last steps. With `average` the optimiser
also keeps a running average of each parameter, and of each row over its own steps (Shamir & Zhang 2013, section 4,
https://arxiv.org/abs/1212.1824)::

    w̄ ← w̄ + c (w − w̄),    c = 10 / (t + 9) after step t

It reaches back over about a tenth of the steps so far.
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw

from bora.bayes.rows import together

REACH = 10  # the running average reaches back over about 1/REACH of the steps


class RowwiseAdamW(torch.optim.Optimizer):
    """AdamW without weight decay, row by row for sparse gradients.

    Args:
        params: with dense gradients, handled as by torch.optim.AdamW; a parameter [D, …] may instead have a gradient
            that is sparse over its rows.
        lr, betas, eps: AdamW's.
        average: keep a running average of each parameter; see `exchange_averages`.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        average: bool = False,
    ):
        # fused: without it torch would load the step counts of a checkpoint to the CPU, not to the parameter's device.
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "fused": True})
        self.average = average

    # torch declares two overloads, with and without a closure.
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            options = {"lr": group["lr"], "beta1": beta1, "beta2": beta2, "eps": group["eps"], "weight_decay": 0.0}
            options |= {"fused": group["fused"], "amsgrad": False, "maximize": False}
            parts, gathered, averaged = [], [], []
            for p in group["params"]:
                if p.grad is None:
                    continue
                tensors = self._tensors(p, p.grad.is_sparse)
                if not p.grad.is_sparse:
                    parts.append((p.grad, *tensors[:4]))
                    averaged.append(tensors)
                    continue
                gradient = p.grad.coalesce()
                index, values = gradient.indices()[0], gradient.values()
                if together(p.device):
                    rows = [t.index_select(0, index) for t in tensors]
                    gathered.append((tensors, index, rows))
                    parts += zip(*(t.unbind() for t in (values, *rows[:4])), strict=True)
                    averaged.append(rows)
                else:
                    each = [[t[d] for t in tensors] for d in index.tolist()]
                    parts += [(value, *row[:4]) for value, row in zip(values, each, strict=True)]
                    averaged += each
            if parts:
                grads, params, exp_avgs, exp_avg_sqs, steps = map(list, zip(*parts, strict=True))
                adamw(params, grads, exp_avgs, exp_avg_sqs, [], steps, **options)
            if self.average:
                for p, _, _, step, mean in averaged:
                    weight = (REACH / (step + REACH - 1)).to(p.dtype)
                    mean.lerp_(p, weight.view(step.shape + (1,) * (p.dim() - step.dim())))
            for tensors, index, rows in gathered:
                for whole, part in zip(tensors, rows, strict=True):
                    whole.index_copy_(0, index, part)
        return loss

    @torch.no_grad()
    def exchange_averages(self) -> None:
        """Swap the parameters and their running averages; a second call swaps them back."""
        for p, state in self.state.items():
            if "average" in state:
                state["average"], p.data = p.data, state["average"]

    @torch.no_grad()
    def restart_average(self, p: nn.Parameter) -> None:
        """Set a parameter's running average to its present value; while they are swapped, the reverse."""
        if "average" in self.state.get(p, {}):
            self.state[p]["average"].copy_(p)

    def _tensors(self, p: nn.Parameter, by_row: bool) -> list[Tensor]:
        """Return p, its two moments, its step count (one, or one a row), and with `average` its running average."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((len(p),) if by_row else (), dtype=torch.float32, device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
            if self.average:
                state["average"] = p.detach().clone()
        return [p, *(state[name] for name in ("exp_avg", "exp_avg_sq", "step", "average") if name in state)]


def sum_over_processes(gradient: Tensor) -> Tensor:
    """Sum the sparse gradients of all processes, which may have different rows.

    Args:
        gradient: sparse [D, P], with the rows of this process's documents.
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
    return torch.sparse_coo_tensor(rows[None], total, gradient.shape, is_coalesced=True, check_invariants=False)


def clip_gradients(parameters: Iterable[nn.Parameter], bound: float, by_value: bool = False) -> None:
    """Clip the gradients of all tasks and of Θ together, in place; unlike torch's clipping, sparse ones too.

    Args:
        bound: the largest norm of all of them together; with `by_value`, the largest absolute value.
    """
    parts = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.is_sparse:
            gradient = parameter.grad = gradient.coalesce()
            gradient = gradient._values()  # shares the gradient's memory
        if gradient is not None:
            parts.append(gradient)
    factor = None if by_value else (bound / (torch.nn.utils.get_total_norm(parts) + 1e-6)).clamp(max=1)
    for part in parts:
        if factor is None:
            part.clamp_(-bound, bound)
        else:
            part.mul_(factor)


def gradient_norm(parameter: nn.Parameter | None) -> float | None:
    """Return the norm of a parameter's gradient, sparse or dense; None if it has none."""
    if parameter is None or parameter.grad is None:
        return None
    gradient = parameter.grad
    return float((gradient.coalesce().values() if gradient.is_sparse else gradient).norm())


def learning_rate(tau: float, parameterization: str) -> float:
    """Return the default learning rate.

    For the centered form: the paper's rule, 1e-5 · τ, and 1e-4 at τ = 0 (Table 1). Otherwise, and at τ = ∞: 1e-3 at
    every τ, so that the limits are trained as well as what lies between them (experiments/stdlib: at τ = 0 the paper's
    rate is far too low).
    """
    if parameterization != "centered" or math.isinf(tau):
        return 1e-3
    return 1e-4 if tau == 0 else 1e-5 * tau
