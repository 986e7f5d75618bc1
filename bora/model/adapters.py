"""Stacked LoRA: all tasks' low-rank factors at a linear layer as one tensor each.

At a layer with frozen weight W the output for a document of task d is (eq. 3)

    y = W x + (α/r) · B_d A_d x          A [D, r, n_in], B [D, n_out, r]

One forward serves a batch of mixed tasks: the factors of each row's task are gathered and two
batched products added to the frozen layer's output by a forward hook, so the backbone itself is
never changed. The hierarchical mean Θ has its own factors A_mean [r, n_in], B_mean [n_out, r].
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

PARAMETERIZATIONS = ("centered", "noncentered", "shared")


class LowRank(NamedTuple):
    """One low-rank update: A [r, n_in] and B [n_out, r]; or [D, …] for all tasks."""

    A: Tensor
    B: Tensor


class StackedLoRA(nn.Module):
    """The factors of D tasks and of Θ at one linear layer.

    `parameterization` says what is stored beside Θ:
    - centered: `A`, `B` are θ_d themselves (the paper's);
    - noncentered: `A_offset`, `B_offset` are δ_d = θ_d − Θ;
    - shared: nothing; every task is Θ (τ = ∞).
    """

    def __init__(self, n_in: int, n_out: int, n_tasks: int, rank: int, alpha: float, parameterization: str):
        super().__init__()
        self.n_tasks, self.scale, self.parameterization = n_tasks, alpha / rank, parameterization
        self.A_mean = nn.Parameter(torch.empty(rank, n_in))
        self.B_mean = nn.Parameter(torch.zeros(n_out, rank))
        nn.init.kaiming_uniform_(self.A_mean, a=math.sqrt(5))  # as PEFT starts LoRA
        if parameterization == "centered":
            self.A = nn.Parameter(torch.empty(n_tasks, rank, n_in))
            self.B = nn.Parameter(torch.empty(n_tasks, n_out, rank))
        elif parameterization == "noncentered":
            self.A_offset = nn.Parameter(torch.empty(n_tasks, rank, n_in))
            self.B_offset = nn.Parameter(torch.empty(n_tasks, n_out, rank))
        elif parameterization != "shared":
            raise ValueError(
                f"parameterization must be one of {', '.join(PARAMETERIZATIONS)}, not {parameterization!r}"
            )
        self.start_at_mean(0.0)

    @torch.no_grad()
    def start_at_mean(self, std: float) -> None:
        """Set every θ_d = Θ + std · N(0, 1)."""
        if self.parameterization == "shared":
            return
        centered = self.parameterization == "centered"
        factors = (self.A, self.B) if centered else (self.A_offset, self.B_offset)
        for factor, mean in zip(factors, (self.A_mean, self.B_mean), strict=True):
            factor.copy_(mean.expand_as(factor)) if centered else factor.zero_()
            if std:
                factor.add_(torch.randn_like(factor), alpha=std)

    @torch.no_grad()
    def start_from(self, stored: Mapping[str, Tensor]) -> None:
        """Take over θ and Θ, as far as this form can hold them, from what any form stores.

        Args:
            stored: A_mean, B_mean; and A, B (centered), A_offset, B_offset (noncentered) or neither.
        """
        for name in "AB":
            mean = stored[f"{name}_mean"]
            offset = stored.get(f"{name}_offset", torch.zeros_like(mean))
            theta = stored.get(name, mean + offset)
            getattr(self, f"{name}_mean").copy_(mean)
            if self.parameterization == "centered":
                getattr(self, name).copy_(theta)
            elif self.parameterization == "noncentered":
                getattr(self, f"{name}_offset").copy_(theta - mean)

    def of(self, task: Tensor | int) -> LowRank:
        """θ_d's factors for one task (an int) or for each row of a batch (a [R] index)."""
        if self.parameterization == "centered":
            return LowRank(self.A[task], self.B[task])
        if self.parameterization == "noncentered":
            return LowRank(self.A_mean + self.A_offset[task], self.B_mean + self.B_offset[task])
        return LowRank(self.A_mean, self.B_mean)

    def deviations(self) -> tuple[Tensor, ...]:
        """θ_d − Θ for the factors A and B, [D, …] each; nothing where every task is Θ."""
        if self.parameterization == "centered":
            return self.A - self.A_mean, self.B - self.B_mean
        if self.parameterization == "noncentered":
            return self.A_offset, self.B_offset
        return ()

    @torch.no_grad()
    def move_mean_to_average(self) -> None:
        """Set Θ to the plain mean of the θ_d, its best value at fixed θ (centered only)."""
        self.A_mean.copy_(self.A.mean(dim=0))
        self.B_mean.copy_(self.B.mean(dim=0))

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        """(α/r) · B_d A_d x, in the factors' dtype, given back in x's.

        Args:
            x: [R, T, n_in], or [R·T, n_in] (OPT flattens before its feed-forward layers).
            task: [R] the rows' tasks.
        """
        A, B = self.of(task)
        rows = x.reshape(len(task), -1, x.shape[-1]).to(A.dtype)
        update = ((rows @ A.mT) @ B.mT) * self.scale
        return update.reshape(*x.shape[:-1], -1).to(x.dtype)


class TaskLoRAs(Mapping):
    """One task's LoRA by the task's name: layer name → LowRank.

    In the centered form the tensors are views of the stacked factors: writing to them trains or
    edits that task alone.
    """

    def __init__(self, adapters: "Adapters"):
        self._adapters = adapters

    def __getitem__(self, name: str) -> dict[str, LowRank]:
        index = self._adapters.task_names.index(name) if name in self else None
        if index is None:
            raise KeyError(name)
        return {layer: stack.of(index) for layer, stack in self._adapters.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._adapters.task_names

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters.task_names)

    def __len__(self) -> int:
        return len(self._adapters.task_names)


class Adapters(nn.Module):
    """The StackedLoRA of every adapted layer, hooked onto a frozen backbone."""

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        task_names: list[str],
        rank: int,
        alpha: float,
        parameterization: str,
        init_std: float = 0.0,
    ):
        """
        Args:
            layers: the backbone's linear layers to adapt, by their name in the backbone.
            task_names: the D tasks; a document's task is an index into this list.
            rank: r ≥ 1.
            alpha: LoRA's α; the update is scaled by α/r.
            parameterization: one of PARAMETERIZATIONS.
            init_std: standard deviation of θ_d around Θ at the start, in parameter units.
        """
        super().__init__()
        self.task_names, self.parameterization = list(task_names), parameterization
        # A module's name may not hold a dot, so the layer's path is written with slashes.
        self.stacks = nn.ModuleDict()
        for name, layer in layers.items():
            n_in, n_out = linear_shape(layer)
            stack = StackedLoRA(n_in, n_out, len(task_names), rank, alpha, parameterization)
            stack.start_at_mean(init_std)
            self.stacks[name.replace(".", "/")] = stack
            layer.register_forward_hook(self._hook(stack))
        self._task: Tensor | None = None

    def _hook(self, stack: StackedLoRA):
        def add_update(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._task is None:
                return None  # leaves the frozen layer's output as it is
            return output + stack(args[0], self._task)

        return add_update

    @contextmanager
    def routed(self, task: Tensor | None):
        """Within: row i of every forward is a document of task[i]. None, or outside: the bare backbone."""
        self._task = task
        try:
            yield
        finally:
            self._task = None

    def items(self) -> Iterator[tuple[str, StackedLoRA]]:
        """(layer name in the backbone, its StackedLoRA)."""
        return ((key.replace("/", "."), stack) for key, stack in self.stacks.items())

    @property
    def tasks(self) -> TaskLoRAs:
        """Each task's LoRA by name."""
        return TaskLoRAs(self)

    @property
    def mean(self) -> dict[str, LowRank]:
        """The hierarchical mean Θ: layer name → LowRank."""
        return {layer: LowRank(stack.A_mean, stack.B_mean) for layer, stack in self.items()}

    @property
    def params_per_task(self) -> int:
        """P, the length of θ_d."""
        return sum(s.A_mean.numel() + s.B_mean.numel() for s in self.stacks.values())

    def deviations(self) -> Iterator[Tensor]:
        """θ_d − Θ, factor by factor, [D, …] each."""
        for stack in self.stacks.values():
            yield from stack.deviations()

    @torch.no_grad()
    def distances(self) -> Tensor:
        """[D] ‖θ_d − Θ‖₂ in parameter units (float64)."""
        squares = torch.zeros(len(self.task_names), dtype=torch.float64)
        for deviation in self.deviations():
            squares += deviation.double().square().flatten(1).sum(dim=1).cpu()
        return squares.sqrt()

    def fix_mean(self) -> None:
        """Take Θ out of training: at τ = 0 no gradient ever reaches it."""
        for stack in self.stacks.values():
            stack.A_mean.requires_grad_(False)
            stack.B_mean.requires_grad_(False)

    def move_mean_to_average(self) -> None:
        """Set Θ to the plain mean of the θ_d, its best value at fixed θ and any τ > 0."""
        for stack in self.stacks.values():
            stack.move_mean_to_average()


def linear_shape(layer: nn.Module) -> tuple[int, int]:
    """(n_in, n_out) of a linear layer: nn.Linear and its kin, or GPT-2's transposed Conv1D."""
    if hasattr(layer, "in_features"):
        return layer.in_features, layer.out_features
    return layer.nx, layer.nf
