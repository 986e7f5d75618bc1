"""The tasks' LoRAs as one matrix: row d holds all low-rank factors of task d, layer after layer.

The hierarchical mean Θ is one more such row. What is stored for the tasks is the form's to say (bora.bayes.forms).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from bora.bayes.levels import Levels
from bora.bayes.prior import FLAT, Prior
from bora.bayes.saved import disk_names, read_saved
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
