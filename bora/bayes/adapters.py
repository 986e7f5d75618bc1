"""The tasks' LoRAs as one matrix: row d is θ_d, every low-rank factor of task d, layer after layer.

At a layer with frozen weight W the output for a document of task d is (eq. 3)::

    y = W x + (α/r) · B_d A_d x          A_d [r, n_in], B_d [n_out, r]

One forward serves a batch of mixed tasks: the rows of the batch's tasks are gathered once (bora.bayes.rows), cut
into the layers' factors, and two batched products are added to each frozen layer's output by a forward hook, so
the backbone itself is never changed. The hierarchical mean Θ is one more such row.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bora.bayes.rows import Form, Prior, rows
from bora.errors import UserError

Linear = nn.Linear | Conv1D  # GPT-2's Conv1D keeps its weight transposed

PARAMETERIZATIONS = ("centered", "noncentered", "shared")
ELEMENTS_AT_A_TIME = 2**24  # of the [D, P] matrix, where a float64 copy of all of it would be too much


class LowRank(NamedTuple):
    """One low-rank update: A [r, n_in] and B [n_out, r]; or [D, …] or [R, …], one a task or a row."""

    A: Tensor
    B: Tensor


class Layout:
    """Where in θ_d ∈ Rᴾ each layer's A and B stand: A before B, layers in the backbone's order."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], rank: int):
        """
        Args:
            shapes: layer name → (n_in, n_out).
            rank: r ≥ 1.
        """
        self.shapes = {name: ((rank, n_in), (n_out, rank)) for name, (n_in, n_out) in shapes.items()}
        self.sizes = [math.prod(shape) for pair in self.shapes.values() for shape in pair]

    @property
    def n_parameters(self) -> int:
        """P, the length of θ_d."""
        return sum(self.sizes)

    def factors(self, theta: Tensor) -> dict[str, LowRank]:
        """[…, P] → views, layer name → (A […, r, n_in], B […, n_out, r])."""
        pieces = iter(theta.split(self.sizes, dim=-1))
        return {
            name: LowRank(*(next(pieces).unflatten(-1, shape) for shape in pair))
            for name, pair in self.shapes.items()
        }


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
        return self._adapters.layout.factors(self._adapters.theta(index))

    def __contains__(self, name: object) -> bool:
        return name in self._adapters.task_names

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters.task_names)

    def __len__(self) -> int:
        return len(self._adapters.task_names)


class Adapters(nn.Module):
    """θ_1 … θ_D and Θ, hooked onto a frozen backbone.

    `mean` [P] is Θ. What is `stored` beside it, [D, P], depends on `parameterization`:

    - centered: the θ_d themselves (the paper's);
    - noncentered: the δ_d = θ_d − Θ;
    - shared: nothing; every task is Θ (τ = ∞).
    """

    stored: nn.Parameter | None

    def __init__(
        self,
        layers: Mapping[str, Linear],
        task_names: list[str],
        rank: int,
        alpha: float,
        parameterization: str,
        init_std: float = 0.0,
        sparse: bool = False,
    ):
        """
        Args:
            layers: the backbone's linear layers to adapt, by their name in the backbone.
            task_names: the D tasks; a document's task is an index into this list.
            rank: r ≥ 1.
            alpha: LoRA's α; the update is scaled by α/r.
            parameterization: one of PARAMETERIZATIONS.
            init_std: standard deviation of θ_d around Θ at the start, in parameter units.
            sparse: the [D, P] matrix gets a sparse gradient, of the rows in the batch alone.
        """
        super().__init__()
        if parameterization not in PARAMETERIZATIONS:
            raise ValueError(
                f"parameterization must be one of {', '.join(PARAMETERIZATIONS)}, not {parameterization!r}"
            )
        self.task_names, self.parameterization = list(task_names), parameterization
        self.scale, self.sparse = alpha / rank, sparse
        self.layout = Layout({name: linear_shape(layer) for name, layer in layers.items()}, rank)
        shape = (len(self.task_names), self.layout.n_parameters)
        self.mean = nn.Parameter(torch.zeros(shape[1]))
        with torch.no_grad():
            for lora in self.layout.factors(self.mean).values():
                nn.init.kaiming_uniform_(lora.A, a=math.sqrt(5))  # as PEFT starts LoRA; B is 0
        if parameterization == "shared":
            self.register_parameter("stored", None)
        elif parameterization == "centered":
            self.stored = nn.Parameter(self.mean.detach().expand(shape).clone())
        else:
            self.stored = nn.Parameter(torch.zeros(shape))
        if init_std and self.stored is not None:
            with torch.no_grad():
                self.stored.add_(torch.randn(shape), alpha=init_std)
        for name, layer in layers.items():
            layer.register_forward_hook(self._hook(name))
        self._factors: dict[str, LowRank] | None = None
        self.register_state_dict_post_hook(_save_by_layer)
        self.register_load_state_dict_pre_hook(_load_by_layer)

    def theta(self, task: int) -> Tensor:
        """[P] θ of one task: a view of the matrix in the centered form."""
        if self.stored is None:
            return self.mean
        return self.stored[task] if self.parameterization == "centered" else self.mean + self.stored[task]

    def rows(
        self, task: Tensor, dtype: torch.dtype, prior: Prior | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """θ of a batch's documents, and −log prior of their tasks in nats.

        Args:
            task: [R].
            dtype: of θ.
            prior: None where its energies are not asked for.

        Returns:
            θ [R, P], or [P] where all share Θ; energies [R], or None.
        """
        if self.stored is None:
            return self.mean.to(dtype), None
        form = Form(self.parameterization == "centered", self.sparse, dtype)
        return rows(self.stored, self.mean, task, form, prior)

    def deviation(self, stored: Tensor) -> Tensor:
        """[…, P] θ_d − Θ from what is stored of θ_d."""
        return stored - self.mean if self.parameterization == "centered" else stored

    @contextmanager
    def routed(self, theta: Tensor | None):
        """Within: row i of every forward runs under theta[i]. None, or outside: the bare backbone.

        Args:
            theta: [R, P], a row for each of the batch's; or [P], the same for all.
        """
        self._factors = None if theta is None else self.layout.factors(theta)
        try:
            yield
        finally:
            self._factors = None

    def _hook(self, name: str):
        def add_update(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._factors is None:
                return None  # leaves the frozen layer's output as it is
            return add_low_rank(output, args[0], self._factors[name], self.scale)

        return add_update

    @property
    def tasks(self) -> TaskLoRAs:
        """Each task's LoRA by name."""
        return TaskLoRAs(self)

    @property
    def mean_lora(self) -> dict[str, LowRank]:
        """The hierarchical mean Θ: layer name → LowRank."""
        return self.layout.factors(self.mean)

    @property
    def params_per_task(self) -> int:
        """P, the length of θ_d."""
        return self.layout.n_parameters

    @torch.no_grad()
    def distances(self) -> Tensor:
        """[D] ‖θ_d − Θ‖₂ in parameter units (float64)."""
        if self.stored is None:
            return torch.zeros(len(self.task_names), dtype=torch.float64)
        some = self.stored.split(max(1, ELEMENTS_AT_A_TIME // self.params_per_task))
        squares = [self.deviation(rows).double().square().sum(dim=1).cpu() for rows in some]
        return torch.cat(squares).sqrt()

    @torch.no_grad()
    def move_mean_to_average(self) -> None:
        """Set Θ to the plain mean of the θ_d, its best value at fixed θ and any τ > 0 (centered only)."""
        if self.stored is not None:
            self.mean.copy_(self.stored.mean(dim=0))

    @torch.no_grad()
    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Take over θ and Θ, as far as this form can hold them, from what any form saved.

        Args:
            state: another Adapters' state_dict, of the same tasks, layers and rank.
        """
        mean = _rows(state, _disk_keys(self, "_mean"))
        theta, offset = (
            _rows(state, keys) if all(key in state for key in keys) else None
            for keys in (_disk_keys(self, ""), _disk_keys(self, "_offset"))
        )
        self.mean.copy_(mean)
        if self.stored is None:
            return
        if offset is None:
            offset = torch.zeros_like(mean) if theta is None else theta - mean
        self.stored.copy_(
            offset if self.parameterization == "noncentered" else mean + offset if theta is None else theta
        )


# On disk the factors stand layer by layer, under the names that the README gives, so that a checkpoint can be read
# without knowing the layout: A_mean and B_mean are Θ's; A and B are θ_d's, A_offset and B_offset δ_d's.
SUFFIXES = {
    "centered": {"mean": "_mean", "stored": ""},
    "noncentered": {"mean": "_mean", "stored": "_offset"},
    "shared": {"mean": "_mean"},
}


def disk_key(layer: str, factor: str, suffix: str) -> str:
    """A factor's name on disk: of the layer's A or B, with one of SUFFIXES."""
    # The dots of a layer's path are written as slashes: a dot divides modules.
    return f"stacks.{layer.replace('.', '/')}.{factor}{suffix}"


def _disk_keys(adapters: Adapters, suffix: str, prefix: str = "") -> list[str]:
    """The names of all the layers' factors, in the layout's order."""
    return [prefix + disk_key(layer, factor, suffix) for layer in adapters.layout.shapes for factor in "AB"]


def _rows(state: Mapping[str, Tensor], keys: list[str]) -> Tensor:
    """[P] or [D, P] from the factors of those names."""
    return torch.cat([state[key].flatten(-2) for key in keys], dim=-1)


def _save_by_layer(adapters: Adapters, state: dict[str, Tensor], prefix: str, *_) -> None:
    for name, suffix in SUFFIXES[adapters.parameterization].items():
        if prefix + name in state:
            for layer, lora in adapters.layout.factors(state.pop(prefix + name)).items():
                for factor, value in lora._asdict().items():
                    state[prefix + disk_key(layer, factor, suffix)] = value


def _load_by_layer(adapters: Adapters, state: dict[str, Tensor], prefix: str, *_) -> None:
    for name, suffix in SUFFIXES[adapters.parameterization].items():
        keys = _disk_keys(adapters, suffix, prefix)
        if all(key in state for key in keys):
            state[prefix + name] = _rows(state, keys)
            for key in keys:
                del state[key]


def add_low_rank(output: Tensor, x: Tensor, lora: LowRank, scale: float) -> Tensor:
    """output + scale · B A x; where rows have factors of their own, written into `output` itself.

    A frozen linear layer needs its output no more, so a copy of it would be for nothing; should some layer
    need it all the same for its gradient, autograd refuses with an error.

    Args:
        output: [R, T, n_out], or [R·T, n_out] (OPT flattens before its feed-forward layers).
        x: the same with n_in.
        lora: A [R, r, n_in] and B [R, n_out, r], one a row; or A [r, n_in] and B [n_out, r] for all rows.
        scale: α/r.

    Raises:
        UserError: the rows of x are not those of the batch's documents.
    """
    A, B = lora
    if A.dim() == 2:
        hidden = nn.functional.linear(x, A)
        flat = torch.addmm(output.flatten(0, -2), hidden.flatten(0, -2), B.mT, alpha=scale)
        return flat.view(output.shape)
    if len(x) % len(A) or (x.dim() > 2 and len(x) != len(A)):
        raise UserError(
            f"lora.target_modules: a layer was given {len(x)} rows for {len(A)} documents, so it cannot be "
            "told whose they are (a routed expert?); name other layers"
        )
    hidden = torch.bmm(x.reshape(len(A), -1, x.shape[-1]), A.mT)
    # Not even a view where none is needed: autograd would copy the gradient for it.
    rows = output if output.dim() == 3 else output.view(len(A), -1, output.shape[-1])
    rows.baddbmm_(hidden, B.mT, alpha=scale)
    return output


def linear_shape(layer: Linear) -> tuple[int, int]:
    """(n_in, n_out) of a linear layer."""
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    return layer.in_features, layer.out_features
