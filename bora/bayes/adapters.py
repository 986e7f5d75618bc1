"""The tasks' LoRAs as one matrix: row d is of task d, every low-rank factor of it, layer after layer.

The hierarchical mean Θ is one more such row. What is stored beside it depends on the form:

| form | stored [D, P] | when |
|---|---|---|
| Centered | θ_d | the paper's parameterization |
| NonCentered | δ_d = θ_d − Θ | |
| Shared | nothing: every task is Θ | τ = ∞ |
| Separate | θ_d; Θ is their average | τ = 0 |
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bora.bayes.prior import FLAT, Prior
from bora.bayes.rows import rows
from bora.model.lora import Layout, LowRank

ELEMENTS_AT_A_TIME = 2**24  # of the [D, P] matrix, where a float64 copy of all of it would be too much

# On disk the factors stand layer by layer, so that a checkpoint can be read without knowing the layout: A_mean and
# B_mean are Θ's; A and B are θ_d's, A_offset and B_offset δ_d's.
MEAN, THETA, OFFSET = "_mean", "", "_offset"


class Adapters(nn.Module, ABC):
    """θ_1 … θ_D and Θ.

    Attributes:
        name: of the form, as in the summary.
        suffix: of what is stored, on disk; None if nothing is.
        mean: [P] Θ.
        stored: [D, P], or None.
        layout: of a row.
        task_names: the D tasks; a document's task is an index into this list.
        sparse: `stored` gets a sparse gradient, of the rows in the batch alone.

    Args:
        init_std: standard deviation of θ_d around Θ at the start, in parameter units.
    """

    name: str
    suffix: str | None
    stored: nn.Parameter | None

    def __init__(
        self, layout: Layout, task_names: Sequence[str], init_std: float = 0.0, sparse: bool = False
    ):
        super().__init__()
        self.layout, self.task_names, self.sparse = layout, list(task_names), sparse
        self.mean = nn.Parameter(torch.zeros(layout.n_parameters))
        with torch.no_grad():
            for lora in layout.factors(self.mean).values():
                nn.init.kaiming_uniform_(lora.A, a=math.sqrt(5))  # as PEFT starts LoRA; B is 0
        self.register_parameter("stored", self._start(init_std))
        self.register_state_dict_post_hook(_save_by_layer)
        self.register_load_state_dict_pre_hook(_load_by_layer)

    @abstractmethod
    def _start(self, init_std: float) -> nn.Parameter | None:
        """Return what is stored at the start."""

    @abstractmethod
    def theta(self, task: int) -> Tensor:
        """Return θ of one task, [P]: a view of the matrix in the centered form."""

    @abstractmethod
    def deviations(self, tasks: slice = slice(None)) -> Tensor:
        """Return θ_d − Θ of some of the tasks, [M, P]."""

    @abstractmethod
    def rows(self, task: Tensor, dtype: torch.dtype, prior: Prior = FLAT) -> tuple[Tensor, Tensor]:
        """Return θ of a batch's documents, and the prior's potential of their tasks.

        Args:
            task: [R].
            dtype: of θ.

        Returns:
            θ [R, P], or [P] where all tasks share it; potentials [R] in nats.
        """

    @abstractmethod
    def _place(self, theta: Tensor | None, offset: Tensor | None) -> None:
        """Put the tasks where they are to begin, Θ being in place; see `start_at`."""

    @torch.no_grad()
    def start_at(self, mean: Tensor, theta: Tensor | None = None, offset: Tensor | None = None) -> None:
        """Take over Θ [P], and θ or δ [D, P] as far as this form can hold them; without either, tasks start at Θ."""
        self.mean.copy_(mean)
        self._place(theta, offset)

    def before_evaluation(self) -> None:
        """Bring Θ to where this form has it, if training does not."""

    @property
    def tasks(self) -> "TaskLoRAs":
        """Each task's LoRA by name."""
        return TaskLoRAs(self)

    @torch.no_grad()
    def distances(self) -> Tensor:
        """Return ‖θ_d − Θ‖₂ in parameter units, [D] float64 on the CPU."""
        n, some = len(self.task_names), max(1, ELEMENTS_AT_A_TIME // self.layout.n_parameters)
        parts = [
            self.deviations(slice(i, i + some)).double().square().sum(dim=1).cpu() for i in range(0, n, some)
        ]
        return torch.cat(parts).sqrt()


class _Matrix(Adapters):
    """A form that stores a row a task."""

    stored: nn.Parameter

    @abstractmethod
    def theta_of(self, row: Tensor, mean: Tensor) -> Tensor: ...

    @abstractmethod
    def deviation_of(self, row: Tensor, mean: Tensor) -> Tensor: ...

    @abstractmethod
    def add_to_mean(self, of_mean: Tensor, of_theta: Tensor, of_deviation: Tensor | None) -> None: ...

    @abstractmethod
    def _at_mean(self) -> Tensor:
        """Return a row whose θ_d is Θ, [P]."""

    def _start(self, init_std: float) -> nn.Parameter:
        shape = (len(self.task_names), self.layout.n_parameters)
        stored = self._at_mean().detach().expand(shape).clone()
        if init_std:
            stored.add_(torch.randn(shape), alpha=init_std)
        return nn.Parameter(stored)

    def theta(self, task: int) -> Tensor:
        return self.theta_of(self.stored[task], self.mean)

    def deviations(self, tasks: slice = slice(None)) -> Tensor:
        return self.deviation_of(self.stored[tasks], self.mean)

    def rows(self, task: Tensor, dtype: torch.dtype, prior: Prior = FLAT) -> tuple[Tensor, Tensor]:
        return rows(self.stored, self.mean, task, self, dtype, prior)


class Centered(_Matrix):
    """The matrix holds θ_d."""

    name, suffix = "centered", THETA

    def theta_of(self, row: Tensor, mean: Tensor) -> Tensor:
        return row

    def deviation_of(self, row: Tensor, mean: Tensor) -> Tensor:
        return row - mean

    def add_to_mean(self, of_mean: Tensor, of_theta: Tensor, of_deviation: Tensor | None) -> None:
        if of_deviation is not None:
            of_mean -= of_deviation

    def _at_mean(self) -> Tensor:
        return self.mean

    def _place(self, theta: Tensor | None, offset: Tensor | None) -> None:
        self.stored.copy_(theta if theta is not None else self.mean if offset is None else self.mean + offset)


class NonCentered(_Matrix):
    """The matrix holds δ_d = θ_d − Θ."""

    name, suffix = "noncentered", OFFSET

    def theta_of(self, row: Tensor, mean: Tensor) -> Tensor:
        return mean + row

    def deviation_of(self, row: Tensor, mean: Tensor) -> Tensor:
        return row

    def add_to_mean(self, of_mean: Tensor, of_theta: Tensor, of_deviation: Tensor | None) -> None:
        of_mean += of_theta

    def _at_mean(self) -> Tensor:
        return torch.zeros_like(self.mean)

    def _place(self, theta: Tensor | None, offset: Tensor | None) -> None:
        if offset is None:
            offset = torch.zeros_like(self.mean) if theta is None else theta - self.mean
        self.stored.copy_(offset)


class Separate(Centered):
    """Tasks without a prior to tie them (τ = 0): no θ_d depends on Θ, which is their average, the limit τ → 0+."""

    @torch.no_grad()
    def before_evaluation(self) -> None:
        self.mean.copy_(self.stored.mean(dim=0))


class Shared(Adapters):
    """One LoRA for all tasks (τ = ∞)."""

    name, suffix = "shared", None

    def _start(self, init_std: float) -> None:
        return None

    def theta(self, task: int) -> Tensor:
        return self.mean

    def deviations(self, tasks: slice = slice(None)) -> Tensor:
        n = len(self.task_names[tasks])
        return self.mean.new_zeros(()).expand(n, len(self.mean))

    def rows(self, task: Tensor, dtype: torch.dtype, prior: Prior = FLAT) -> tuple[Tensor, Tensor]:
        return self.mean.to(dtype), self.mean.new_zeros(len(task))

    def _place(self, theta: Tensor | None, offset: Tensor | None) -> None:
        pass


FORMS = {form.name: form for form in (Centered, NonCentered)}


def choose_form(tau: float, parameterization: str) -> type[Adapters]:
    """Choose the form that is trained: Shared at τ = ∞, Separate at τ = 0, else the one asked for.

    Raises:
        ValueError: 0 < τ < ∞ and there is no such parameterization.
    """
    if math.isinf(tau):
        return Shared
    if tau == 0:
        return Separate
    if parameterization not in FORMS:
        raise ValueError(f"parameterization must be one of {', '.join(FORMS)}, not {parameterization!r}")
    return FORMS[parameterization]


class TaskLoRAs(Mapping):
    """One task's LoRA by the task's name: layer name → LowRank.

    In the centered form the tensors are views of the matrix: writing to them trains or edits that task alone.
    """

    def __init__(self, adapters: Adapters):
        self._adapters = adapters

    def __getitem__(self, name: str) -> dict[str, LowRank]:
        if name not in self:
            raise KeyError(name)
        return self._adapters.layout.factors(self._adapters.theta(self._adapters.task_names.index(name)))

    def __contains__(self, name: object) -> bool:
        return name in self._adapters.task_names

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters.task_names)

    def __len__(self) -> int:
        return len(self._adapters.task_names)


class Saved(NamedTuple):
    """What some form saved: Θ [P], and θ or δ [D, P] or neither."""

    mean: Tensor
    theta: Tensor | None
    offset: Tensor | None

    @property
    def deviations(self) -> Tensor | None:
        """[D, P] θ_d − Θ; None where all tasks are Θ."""
        return self.offset if self.theta is None else self.theta - self.mean


def disk_names(layers: Sequence[str], suffix: str, prefix: str = "") -> list[str]:
    """Return the names on disk of all the layers' factors of one kind, in the layout's order."""
    # The dots of a layer's path are written as slashes: a dot divides modules.
    return [
        f"{prefix}stacks.{layer.replace('.', '/')}.{factor}{suffix}" for layer in layers for factor in "AB"
    ]


def read_saved(state: Mapping[str, Tensor], layers: Sequence[str], prefix: str = "") -> Saved:
    """Read what any form saved.

    Args:
        state: a state_dict of adapters.
        layers: their names, in the layout's order.
        prefix: of its keys.

    Raises:
        KeyError: it has no Θ of these layers.
    """

    def read(suffix: str) -> Tensor | None:
        names = disk_names(layers, suffix, prefix)
        return _join(state, names) if all(name in state for name in names) else None

    return Saved(_join(state, disk_names(layers, MEAN, prefix)), read(THETA), read(OFFSET))


def _join(state: Mapping[str, Tensor], names: list[str]) -> Tensor:
    """[P] or [D, P] from the factors of those names."""
    return torch.cat([state[name].flatten(-2) for name in names], dim=-1)


def _suffixes(adapters: Adapters) -> dict[str, str]:
    """Parameter → its suffix on disk."""
    return {"mean": MEAN} if adapters.suffix is None else {"mean": MEAN, "stored": adapters.suffix}


def _save_by_layer(adapters: Adapters, state: dict[str, Tensor], prefix: str, *_) -> None:
    for parameter, suffix in _suffixes(adapters).items():
        factors = adapters.layout.factors(state.pop(prefix + parameter)).values()
        names = disk_names(list(adapters.layout.shapes), suffix, prefix)
        state.update(zip(names, (value for lora in factors for value in lora), strict=True))


def _load_by_layer(adapters: Adapters, state: dict[str, Tensor], prefix: str, *_) -> None:
    for parameter, suffix in _suffixes(adapters).items():
        names = disk_names(list(adapters.layout.shapes), suffix, prefix)
        if all(name in state for name in names):
            state[prefix + parameter] = _join(state, names)
            for name in names:
                del state[name]
