"""The hierarchical model: a frozen backbone, a LoRA θ_d for each task, and the prior that ties them to Θ."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bora.bayes.adamw import RowwiseAdamW
from bora.bayes.adapters import TaskLoRAs
from bora.bayes.forms import NonCentered, choose_form
from bora.bayes.levels import Levels
from bora.bayes.objective import (
    ESTIMATORS,
    LIKELIHOODS,
    Objective,
    prior_by_document,
    sum_likelihood,
    task_mean_likelihood,
)
from bora.bayes.prior import FLAT, make_prior
from bora.bayes.shrinkage import FREE_TAU
from bora.errors import UserError
from bora.model.backbone import Backbone
from bora.model.batch import Batch, Places, document_rows, find_places
from bora.model.likelihood import n_scored
from bora.model.lora import LowRank

Under = Literal["task", "mean", "base"]  # θ_d of each document's task, Θ, or no LoRA


class HierarchicalLoRA(nn.Module):
    """BoRA: the negative log posterior U(θ, Θ) over all θ_d and Θ (Eide & Frigessi 2024, 3.4).

    Args:
        backbone: frozen; it runs each row under its own θ.
        task_names: the D tasks; a batch's `task` indexes this list.
        task_documents: N_d, training documents of each task.
        n_tokens: T, scored training tokens of all tasks.
        tau: precision of the prior, 0 ≤ τ ≤ ∞; or "learn": train Θ first, then the tasks' deviations under a nearly flat
            prior, and shrink them afterwards (bora.bayes.shrinkage).
        parameterization: centered | noncentered, for 0 < τ < ∞; see bora.bayes.forms.
        penalty: gaussian (eq. 5) | norm (the published code).
        estimator: how a step estimates the prior. by_document: 1/N_d of task d's with each of its documents; tasks
            without a document in the batch are untouched | dense: the prior of all tasks, in every step.
        likelihood: sum over tokens (eq. 4) | task_mean: the published code's N_d × mean NLL; then U is minimised
            instead of U/T.
        levels: levels above the tasks. They need 0 < τ < ∞, which is then the tasks', a Gaussian penalty and the
            non-centered form.
        init_std: initial standard deviation of θ_d around Θ, in parameter units.
        dropout: dropout of A's inputs in `objective` in training mode, as PEFT's lora_dropout.
    """

    task_documents: Tensor
    row_documents: Tensor  # [D], followed by those of the levels' units
    row_taus: Tensor

    def __init__(
        self,
        backbone: Backbone,
        task_names: Sequence[str],
        task_documents: Sequence[int],
        n_tokens: int,
        tau: float | Literal["learn"],
        parameterization: str = "noncentered",
        penalty: str = "gaussian",
        estimator: str = "by_document",
        likelihood: str = "sum",
        levels: Levels | None = None,
        init_std: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        for name, value, options in (("likelihood", likelihood, LIKELIHOODS), ("estimator", estimator, ESTIMATORS)):
            if value not in options:
                raise ValueError(f"{name} must be one of {', '.join(options)}, not {value!r}")
        self.learns_tau = tau == "learn"
        self.tau = FREE_TAU if tau == "learn" else float(tau)
        self.penalty, self.likelihood, self.estimator = penalty, likelihood, estimator
        self.n_tokens, self.dropout = n_tokens, dropout
        self.backbone = backbone
        self.register_buffer("task_documents", torch.tensor(list(task_documents)), persistent=False)
        form = choose_form(tau, parameterization)
        if levels is not None and (not issubclass(form, NonCentered) or penalty != "gaussian"):
            raise ValueError(
                "levels are made for 0 < tau < inf or learn, parameterization noncentered and penalty gaussian"
            )
        self.adapters = form(backbone.layout, task_names, init_std, estimator == "by_document", levels)
        # With levels each row has its own τ, which multiplies the potential at τ = 1.
        self.prior = make_prior(self.tau if levels is None else 1.0, penalty, backbone.layout.sizes)
        units, taus = ([], []) if levels is None else (levels.documents, levels.row_taus())
        self.register_buffer("row_documents", torch.tensor([*task_documents, *units]), persistent=False)
        self.register_buffer("row_taus", torch.tensor([self.tau] * len(task_names) + taus), persistent=False)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Plain values from which `from_hyperparameters` rebuilds the model."""
        return {
            "tau": "learn" if self.learns_tau else self.tau,
            "parameterization": self.adapters.name,
            "penalty": self.penalty,
            "estimator": self.estimator,
            "likelihood": self.likelihood,
            "rank": self.backbone.rank,
            "alpha": self.backbone.alpha,
            "layers": list(self.backbone.layout.shapes),
            "task_names": self.adapters.task_names,
            "task_documents": self.task_documents.tolist(),
            "n_tokens": self.n_tokens,
        } | ({} if self.adapters.levels is None else {"levels": asdict(self.adapters.levels)})

    @classmethod
    def from_hyperparameters(cls, model: Any, hyperparameters: Mapping[str, Any]) -> "HierarchicalLoRA":
        """Rebuild a checkpoint's model, without loading its factors.

        Args:
            model: the transformers model that the run was trained on.
            hyperparameters: a checkpoint's `hyper_parameters`.
        """
        known = dict(hyperparameters)
        if "levels" in known:
            known["levels"] = Levels(**known["levels"])
        backbone = Backbone(model, known.pop("layers"), known.pop("rank"), known.pop("alpha"))
        return cls(backbone, **known)

    @property
    def tasks(self) -> TaskLoRAs:
        """Each task's LoRA by name: `model.tasks["name"]["layer"].A`."""
        return self.adapters.tasks

    @property
    def mean(self) -> dict[str, LowRank]:
        """The hierarchical mean Θ: `model.mean["layer"].A`."""
        return self.backbone.layout.factors(self.adapters.mean)

    @property
    def n_parameters(self) -> int:
        """P, the length of θ_d."""
        return self.backbone.layout.n_parameters

    @property
    def device(self) -> torch.device:
        """The device that holds θ."""
        return self.adapters.mean.device

    def nll(self, batch: Batch, under: Under | float = "task", without: int | None = None) -> Tensor:
        """Return −log p of each document, [R] nats.

        Args:
            under: task, its task's θ_d | mean, Θ | base, the bare backbone | a number c, Θ + c (θ_d − Θ).
            without: with levels, the deviation to leave out of θ_d: 0 the task's own, 1 … L that of its unit at a level.
        """
        if without is not None:
            rows = document_rows(batch["task"], batch["units"])
            kept = [part for part in range(rows.shape[1]) if part != without]
            places = Places(*rows[:, kept].unique(return_inverse=True))
            return self.backbone.nll(batch, self.adapters.rows(places, self.backbone.dtype)[0])
        if isinstance(under, float):
            theta = self.adapters.shrunk_rows(_places(batch), self.backbone.dtype, under)
            return self.backbone.nll(batch, theta)
        if under == "base":
            return self.backbone.nll(batch, None)
        if under == "mean":
            return self.backbone.nll(batch, self.adapters.mean)
        if self.adapters.levels is not None and "units" not in batch:  # only the documents' tasks are known
            theta = self.adapters.shrunk_rows(_places(batch), self.backbone.dtype)
        else:
            theta = self.adapters.rows(_places(batch), self.backbone.dtype)[0]
        return self.backbone.nll(batch, theta)

    def prior_potential(self) -> Tensor:
        """Return the prior's part of U: the sum over all tasks and units, in nats, without its normaliser."""
        if self.adapters.levels is None:
            return self.prior.potential(self.adapters.deviations()).sum()
        assert self.adapters.stored is not None
        return (self.row_taus * self.prior.potential(self.adapters.stored)).sum()

    def objective(self, batch: Batch, n_processes: int = 1) -> Objective:
        """Estimate U/T from one batch of mixed tasks. Its mean over an epoch's batches is U/T, and so for the gradient.

        Args:
            batch: a batch; with several processes, this one's share of it.
            n_processes: number of processes whose gradients are averaged.
        """
        task, scored = batch["task"], n_scored(batch["labels"])
        batches, n_d = batch["batches"] * n_processes, self.task_documents
        dense = self.estimator == "dense"
        theta, potentials = self.adapters.rows(_places(batch), self.backbone.dtype, FLAT if dense else self.prior)
        nll = self.backbone.nll(batch, theta, self.dropout if self.training else 0.0)
        if self.likelihood == "sum":
            likelihood, unit = sum_likelihood(nll, batches), self.n_tokens
        else:
            likelihood, unit = task_mean_likelihood(nll, scored, task, n_d), 1
        if dense:
            prior = self.prior_potential()
        else:
            rows = document_rows(task, batch.get("units"))
            if self.adapters.levels is not None:
                potentials = potentials * self.row_taus[rows]
            prior = prior_by_document(potentials, rows, self.row_documents, batches, batch.get("share"))
        return Objective(likelihood / unit, prior / unit, nll.detach(), scored)

    def optimizer(
        self, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, average: bool = False
    ) -> RowwiseAdamW:
        """Return AdamW over all θ_d and Θ, without weight decay, which would be a second prior, around zero."""
        return RowwiseAdamW(self.adapters.parameters(), lr, betas, eps, average)

    def trained_state(self) -> dict[str, Tensor]:
        """Return the trained tensors in a checkpoint's format: everything but the frozen backbone."""
        return self.adapters.saved()

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `trained_state` of a model of this form returned.

        Raises:
            RuntimeError: a tensor is missing, unknown, or of another shape.
        """
        if differing := state.keys() ^ self.trained_state().keys():
            raise RuntimeError(f"the key {min(differing)} is missing or unknown")
        self.adapters.start_from(state)

    def start_from(self, checkpoint: Mapping[str, Any]) -> None:
        """Start at another run's Θ and, matched by name, its tasks' θ, whatever its τ and form; new tasks start at Θ.

        Args:
            checkpoint: that run's, with `hyper_parameters` and `state_dict`.

        Raises:
            UserError: the runs differ in layers, rank or α, or that run has levels that this one lacks.
        """
        ours, theirs = self.hyperparameters, checkpoint["hyper_parameters"]
        for key in ("layers", "rank", "alpha"):
            if theirs[key] != ours[key]:
                raise UserError(f"that run's {key} is not this one's ({theirs[key]}, not {ours[key]})")
        levels = Levels(**theirs["levels"]) if "levels" in theirs else None
        own = [] if self.adapters.levels is None else self.adapters.levels.columns
        if levels is not None and not set(levels.columns) <= set(own):
            raise UserError(f"that run has data.levels={levels.columns}, this one {own}; give the same")
        names = theirs["task_names"] + ([] if levels is None else levels.names)
        self.adapters.start_from(checkpoint["state_dict"], names)


def _places(batch: Batch) -> Places:
    if "present" in batch:
        return Places(batch["present"], batch["place"])
    return find_places(batch["task"], batch.get("units"))
