"""The forms of the matrix of LoRAs.

What is stored for the tasks, [D, P], depends on the form::

    form          stored                     when
    Centered      θ_d                        the paper's parameterization
    NonCentered   δ_d = θ_d − Θ              the default
    Separate      θ_d; Θ is their average    τ = 0
    Shared        nothing: θ_d = Θ           τ = ∞
    Staged        δ_d, once Θ is trained     tau=learn
"""

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from bora.bayes.adapters import Adapters
from bora.bayes.prior import FLAT, Prior
from bora.bayes.rows import Form, rows
from bora.bayes.saved import MEAN, OFFSET, THETA
from bora.model.batch import Places


class _Matrix(Adapters, Form):
    """A form that stores a row for each task."""

    stored: nn.Parameter

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.n_tasks = len(self.task_names)
        self._n_present = 0  # rows in the last batch
        self.stored.register_post_accumulate_grad_hook(self._keep_coalesced)

    @abstractmethod
    def _row(self, theta: Tensor | None, offset: Tensor | None) -> Tensor:
        """Return the stored rows of tasks with this θ or δ [D, P]; without either, the row [P] of a task at Θ."""

    def _start(self, init_std: float) -> nn.Parameter:
        shape = (len(self.names), self.layout.n_parameters)
        stored = self._row(None, None).expand(shape).clone()
        if init_std:
            stored.add_(torch.randn(shape), alpha=init_std)
        return nn.Parameter(stored)

    @torch.no_grad()
    def start_at(self, mean: Tensor, theta: Tensor | None = None, offset: Tensor | None = None) -> None:
        self.mean.copy_(mean)
        rows = self._row(theta, offset)
        if rows.dim() == 2 and len(rows) < len(self.stored):  # from a run without levels, which has only the tasks
            self.stored[len(rows) :] = 0
            self.stored[: len(rows)] = rows
        else:
            self.stored.copy_(rows)

    def theta(self, task: int) -> Tensor:
        return self.theta_of(self.stored[task], self.mean)

    def deviations(self, tasks: slice = slice(None)) -> Tensor:
        return self.deviation_of(self.stored[tasks], self.mean)

    def rows(self, places: Places, dtype: torch.dtype, prior: Prior = FLAT) -> tuple[Tensor, Tensor]:
        self._n_present = len(places.present)
        return rows(self.stored, self.mean, places, self, dtype, prior)

    def _keep_coalesced(self, stored: Tensor) -> None:
        """Mark the gradient of a single backward as coalesced: torch forgets that its rows are sorted and unique."""
        if stored.grad is not None and stored.grad.is_sparse and stored.grad._nnz() == self._n_present:
            stored.grad._coalesced_(True)


class Centered(_Matrix):
    """The matrix holds θ_d."""

    name, suffixes = "centered", {"mean": MEAN, "stored": THETA}

    def theta_of(self, row: Tensor, mean: Tensor) -> Tensor:
        return row

    def deviation_of(self, row: Tensor, mean: Tensor) -> Tensor:
        return row - mean

    def add_to_mean(self, of_mean: Tensor, of_theta: Tensor, of_deviation: Tensor | None) -> None:
        if of_deviation is not None:
            of_mean -= of_deviation

    def _row(self, theta: Tensor | None, offset: Tensor | None) -> Tensor:
        if theta is not None:
            return theta
        return self.mean if offset is None else self.mean + offset


class NonCentered(_Matrix):
    """The matrix holds δ_d = θ_d − Θ, and after the tasks the deviations of the levels' units.

    With levels, θ_d is Θ plus δ_d plus the deviations of the units to which all of the task's documents belong.
    """

    name, suffixes = "noncentered", {"mean": MEAN, "stored": OFFSET}
    holds_units = False  # True while new tasks are fitted: units keep their deviations

    def theta(self, task: int) -> Tensor:
        if task >= self.n_tasks:
            return self.mean + self.stored[task]
        return self.mean + self.deviations(slice(task, task + 1))[0]

    def deviations(self, tasks: slice = slice(None)) -> Tensor:
        own = self.stored[: self.n_tasks][tasks]
        if self.levels is None:
            return own
        chosen = range(self.n_tasks)[tasks]
        rows = [self.levels.rows_of_task(task, self.n_tasks) for task in chosen]
        return torch.stack([delta + self.stored[units].sum(dim=0) for delta, units in zip(own, rows, strict=True)])

    def before_step(self) -> None:
        """Set the gradients of the levels' units to 0 if `holds_units`."""
        if self.holds_units and self.stored.grad is not None:
            gradient = self.stored.grad = self.stored.grad.coalesce()
            gradient.values()[gradient.indices()[0] >= self.n_tasks] = 0

    def theta_of(self, row: Tensor, mean: Tensor) -> Tensor:
        return mean + row

    def deviation_of(self, row: Tensor, mean: Tensor) -> Tensor:
        return row

    def add_to_mean(self, of_mean: Tensor, of_theta: Tensor, of_deviation: Tensor | None) -> None:
        of_mean += of_theta

    def _row(self, theta: Tensor | None, offset: Tensor | None) -> Tensor:
        if offset is not None:
            return offset
        return torch.zeros_like(self.mean) if theta is None else theta - self.mean


class Separate(Centered):
    """Tasks without a prior: no θ_d depends on Θ, which is their average, its limit for τ → 0."""

    @torch.no_grad()
    def before_evaluation(self) -> None:
        self.mean.copy_(self.stored.mean(dim=0))


class Shared(Adapters):
    """One LoRA for all tasks."""

    name, suffixes = "shared", {"mean": MEAN}

    def _start(self, init_std: float) -> None:
        return None

    @torch.no_grad()
    def start_at(self, mean: Tensor, theta: Tensor | None = None, offset: Tensor | None = None) -> None:
        self.mean.copy_(mean)

    def theta(self, task: int) -> Tensor:
        return self.mean

    def deviations(self, tasks: slice = slice(None)) -> Tensor:
        return self.mean.new_zeros(()).expand(len(self.task_names[tasks]), len(self.mean))

    def rows(self, places: Places, dtype: torch.dtype, prior: Prior = FLAT) -> tuple[Tensor, Tensor]:
        return self.mean.to(dtype), self.mean.new_zeros(len(places.place))


class Staged(NonCentered):
    """First all tasks share Θ, as in Shared; then each trains its δ_d, while Θ is held fixed or trained along.

    Attributes:
        deviates: whether the tasks have begun to train their δ_d.
        holds_mean: whether Θ is held fixed meanwhile.
        part: what `shrunk_rows` scales if there are levels: 0 the tasks' deviations, 1 … L those of a level's units;
            None all of them.
    """

    deviates, holds_mean = False, True
    part: int | None = None

    def rows(self, places: Places, dtype: torch.dtype, prior: Prior = FLAT) -> tuple[Tensor, Tensor]:
        if not self.deviates:
            return self.mean.to(dtype), self.mean.new_zeros(places.place.shape)
        return super().rows(places, dtype, prior)

    @torch.no_grad()
    def shrunk_rows(self, places: Places, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        """Return Θ + scale · (θ_d − Θ) for each document of a batch, [R, P]; with levels see `part`."""
        if places.place.dim() == 1:
            return super().shrunk_rows(places, dtype, scale)
        weights = self.mean.new_ones(places.place.shape[1], 1)
        weights[slice(None) if self.part is None else self.part] = scale
        deviations = self.stored.index_select(0, places.present)[places.place]  # [R, 1 + L, P]
        return (self.mean + (weights * deviations).sum(dim=1)).to(dtype)

    def before_step(self) -> None:
        """Drop Θ's gradient while Θ is held fixed. (The backward must compute one, since torch's DDP waits for it.)"""
        if self.deviates and self.holds_mean:
            self.mean.grad = None


PARAMETERIZATIONS = {form.name: form for form in (Centered, NonCentered)}


def choose_form(tau: float | Literal["learn"], parameterization: str) -> type[Adapters]:
    """Choose the form: Shared at τ = ∞, Separate at τ = 0, Staged for tau=learn, else the parameterization's.

    Raises:
        ValueError: 0 < τ < ∞ and the parameterization is unknown.
    """
    if tau == "learn":
        return Staged
    if tau == 0 or math.isinf(tau):
        return Separate if tau == 0 else Shared
    if parameterization not in PARAMETERIZATIONS:
        known = ", ".join(PARAMETERIZATIONS)
        raise ValueError(f"parameterization must be one of {known}, not {parameterization!r}")
    return PARAMETERIZATIONS[parameterization]
