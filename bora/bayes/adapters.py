"""The tasks' LoRAs as one matrix: row d holds all low-rank factors of task d, layer after layer.

The hierarchical mean Θ is one more such row. What is stored for the tasks depends on the form::

    form          stored [D, P]              when
    Centered      θ_d                        the paper's parameterization
    NonCentered   δ_d = θ_d − Θ              the default
    Separate      θ_d; Θ is their average    τ = 0
    Shared        nothing: θ_d = Θ           τ = ∞
    Staged        δ_d, once Θ is trained     tau=learn
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bora.bayes.levels import Levels
from bora.bayes.prior import FLAT, Prior
from bora.bayes.rows import Form, rows
from bora.bayes.saved import MEAN, OFFSET, THETA, disk_names, read_saved
from bora.model.batch import Places
from bora.model.lora import Layout, LowRank

ELEMENTS_AT_A_TIME = 2**24  # a float64 copy of the whole [D, P] matrix could be too large


class Adapters(nn.Module, ABC):
    """θ_1 … θ_D and Θ; a subclass for each form.

    Attributes:
        name: the form's name in summary.json.
        suffixes: parameter → its suffix on disk.
        mean: [P] Θ.
        stored: [D, P], or None.
        layout: where each factor is in a row.
        task_names: the D tasks; a document's task is an index into this list.
        names: the tasks, then the levels' units (party=left), each of which has a θ too.
        sparse: whether the gradient of `stored` is sparse, with only the batch's rows.
        levels: the levels above the tasks; their units' deviations are the rows of `stored` after the tasks'.

    Args:
        init_std: initial standard deviation of θ_d around Θ, in parameter units.
    """

    name: str
    suffixes: dict[str, str]
    stored: nn.Parameter | None

    def __init__(
        self,
        layout: Layout,
        task_names: Sequence[str],
        init_std: float = 0.0,
        sparse: bool = False,
        levels: Levels | None = None,
    ):
        super().__init__()
        self.layout, self.task_names, self.sparse, self.levels = layout, list(task_names), sparse, levels
        self.names = self.task_names + ([] if levels is None else levels.names)
        self.mean = nn.Parameter(torch.zeros(layout.n_parameters, dtype=torch.float32))
        with torch.no_grad():
            for lora in layout.factors(self.mean).values():
                nn.init.kaiming_uniform_(lora.A, a=math.sqrt(5))  # as PEFT starts LoRA; B is 0
            self.register_parameter("stored", self._start(init_std))

    @abstractmethod
    def _start(self, init_std: float) -> nn.Parameter | None:
        """Return the initial `stored`."""

    @abstractmethod
    def theta(self, task: int) -> Tensor:
        """Return a task's θ, [P], a view of the matrix in the centered form; beyond the tasks, Θ + Δ of a unit."""

    @abstractmethod
    def deviations(self, tasks: slice = slice(None)) -> Tensor:
        """Return θ_d − Θ of the tasks in the slice, [M, P]."""

    @abstractmethod
    def rows(self, places: Places, dtype: torch.dtype, prior: Prior = FLAT) -> tuple[Tensor, Tensor]:
        """Return θ of each document in a batch, and the prior's potential of its task.

        Args:
            places: the rows that R documents need.
            dtype: dtype of the returned θ.

        Returns:
            θ [R, P], or [P] if all tasks share it; potentials [R] in nats.
        """

    @abstractmethod
    def start_at(self, mean: Tensor, theta: Tensor | None = None, offset: Tensor | None = None) -> None:
        """Set Θ [P], and the tasks from θ or δ [D, P] as far as this form can hold them, or without either to Θ."""

    def before_step(self) -> None:
        """Drop the gradients of parameters that are held fixed; called before each optimiser step."""

    def before_evaluation(self) -> None:
        """Compute Θ in forms that do not train it; called before each evaluation."""

    @torch.no_grad()
    def shrunk_rows(self, places: Places, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        """Return Θ + scale · (θ_d − Θ) for each document of a batch, [R, P], from its task alone."""
        rows = [self.mean + scale * (self.theta(task) - self.mean) for task in places.present.tolist()]
        return torch.stack(rows).to(dtype).index_select(0, places.place)

    def saved(self) -> dict[str, Tensor]:
        """Return Θ and `stored` in a checkpoint's format; see bora.bayes.saved."""
        state: dict[str, Tensor] = {}
        for parameter, suffix in self.suffixes.items():
            factors = self.layout.factors(getattr(self, parameter).detach()).values()
            names = disk_names(list(self.layout.shapes), suffix)
            state |= zip(names, (value for lora in factors for value in lora), strict=True)
        return state

    def start_from(self, state: Mapping[str, Tensor], names: Sequence[str] | None = None) -> None:
        """Load a state saved by any form, as far as this form can represent it; see `read_saved`.

        Args:
            names: the saved rows' names, to match with this one's `names`; rows without a match start at Θ. None: the
                saved rows have this one's names.
        """
        saved = read_saved(state, list(self.layout.shapes))
        if names is not None:
            place = {name: row for row, name in enumerate(names)}
            rows = [place.get(name, len(names)) for name in self.names]
            at_mean = {"theta": saved.mean, "offset": torch.zeros_like(saved.mean)}
            kept = {kind: getattr(saved, kind) for kind in at_mean}
            arranged = {k: torch.cat([m, at_mean[k][None]])[rows] for k, m in kept.items() if m is not None}
            saved = saved._replace(**arranged)
        self.start_at(*saved)

    @property
    def tasks(self) -> "TaskLoRAs":
        """The tasks' and units' LoRAs by name."""
        return TaskLoRAs(self)

    @torch.no_grad()
    def distances(self) -> Tensor:
        """Return ‖θ_d − Θ‖₂ in parameter units, [D] float64 on the CPU."""
        some = max(1, ELEMENTS_AT_A_TIME // self.layout.n_parameters)
        parts = [slice(i, i + some) for i in range(0, len(self.task_names), some)]
        squares = [self.deviations(part).double().square().sum(dim=1).cpu() for part in parts]
        return torch.cat(squares).sqrt()


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


class TaskLoRAs(Mapping):
    """The LoRA (layer name → LowRank) of each task by its name, and of each unit, as party=left. Iterates over tasks.

    In the centered form the tensors are views of the matrix, so writing to them changes that task.
    """

    def __init__(self, adapters: Adapters):
        self._adapters = adapters

    def __getitem__(self, name: str) -> dict[str, LowRank]:
        if name not in self._adapters.names:
            raise KeyError(name)
        return self._adapters.layout.factors(self._adapters.theta(self._adapters.names.index(name)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters.task_names)

    def __len__(self) -> int:
        return len(self._adapters.task_names)
