"""The LightningModule: frozen backbone + the tasks' LoRAs + hierarchical mean, trained to MAP."""

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric
from transformers import PreTrainedModel

from bora.bayes.adamw import RowwiseAdamW, sum_over_processes
from bora.bayes.adapters import Adapters
from bora.bayes.prior import (
    ESTIMATORS,
    LIKELIHOODS,
    likelihood_estimate,
    prior_energies,
    prior_estimate,
    task_mean_estimate,
)
from bora.bayes.rows import Prior
from bora.data.batches import Batch
from bora.errors import UserError
from bora.model.backbone import Backbone
from bora.model.likelihood import document_nll, n_scored
from bora.model.targets import find_targets
from bora.train.perplexity import BatchPerplexity, TaskPerplexity

log = logging.getLogger(__name__)

NONFINITE = ("stop", "skip")


class NonFiniteLoss(Exception):
    """A batch's loss is infinite or undefined; the message says in which step, and by whose documents."""


class Objective(NamedTuple):
    """The two parts of U/T, in nats a token; and the batch's own NLL in nats, with its scored tokens."""

    likelihood: Tensor
    prior: Tensor
    nats: Tensor
    tokens: Tensor


class HierarchicalLoRA(L.LightningModule):
    """BoRA: minimise U(θ, Θ) / T over all θ_d and Θ with AdamW (Eide & Frigessi 2024, 3.4, 3.5).

    Args:
        model: a transformers causal language model; it is frozen here.
        task_names: the D tasks; a batch's `task` indexes this list.
        task_documents: N_d, training documents of each task.
        n_tokens: T, scored training tokens of all tasks.
        tau: precision of the prior, 0 ≤ τ ≤ ∞.
        rank, alpha, target_modules, init_std: the LoRAs (see conf/lora).
        parameterization: centered | noncentered. At τ = 0 there is no prior to tie the tasks and
            the centered form is taken; at τ = ∞ Θ alone is trained.
        penalty: gaussian (eq. 5) | norm (the published code).
        estimator: of the prior in a step. by_document: (1/N_d) of task d's with each of its documents, and a
            task that is absent from a batch is not touched | dense: all of it, every task in every step.
        likelihood: sum over tokens (eq. 4) | task_mean, the published code's N_d × mean NLL; with it
            U itself is minimised, and validation is judged by BatchPerplexity, as there.
        compile: the backbone, for training (see Backbone).
        lr: learning rate, or None for the rule of `learning_rate`.
        betas, eps: AdamW's. Weight decay is 0: it would be a second prior, around zero.
        nonfinite: what is done where a batch's loss is infinite or undefined. stop | skip: its step is not taken.
    """

    # Checkpoints hold everything but the backbone, so loading one leaves its keys out.
    strict_loading = False

    task_documents: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        task_names: Sequence[str],
        task_documents: Sequence[int],
        n_tokens: int,
        tau: float,
        rank: int = 16,
        alpha: float = 16,
        target_modules: str | list[str] | None = None,
        init_std: float = 0.0,
        parameterization: str = "noncentered",
        penalty: str = "gaussian",
        estimator: str = "by_document",
        likelihood: str = "sum",
        compile: bool = False,
        lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        nonfinite: str = "stop",
    ):
        super().__init__()
        for name, value, options in (
            ("likelihood", likelihood, LIKELIHOODS),
            ("estimator", estimator, ESTIMATORS),
            ("nonfinite", nonfinite, NONFINITE),
        ):
            if value not in options:
                raise ValueError(f"{name} must be one of {', '.join(options)}, not {value!r}")
        self.tau, self.penalty, self.likelihood = float(tau), penalty, likelihood
        self.estimator = estimator
        self.n_documents, self.n_tokens = sum(task_documents), n_tokens
        self.register_buffer("task_documents", torch.tensor(list(task_documents)), persistent=False)
        self.parameterization = effective_parameterization(self.tau, parameterization)
        self.lr = learning_rate(self.tau, parameterization) if lr is None else lr
        self.betas, self.eps, self.nonfinite = betas, eps, nonfinite
        self._skips = False  # the step that is being taken
        layers = find_targets(model, target_modules)
        sparse = estimator == "by_document"
        self.adapters = Adapters(
            layers, list(task_names), rank, alpha, self.parameterization, init_std, sparse
        )
        if sparse and self.adapters.stored is not None:
            # Its gradient is summed over processes here (on_before_optimizer_step): torch's
            # DistributedDataParallel expects a dense one.
            self._ddp_params_and_buffers_to_ignore = ["adapters.stored"]
        self.backbone = Backbone(model, compile)
        self.metrics = torch.nn.ModuleDict(
            {split: TaskPerplexity(len(task_names)) for split in ("val", "test", "base_test")}
        )
        self.monitor = "val/nll"  # what stops training and chooses the epoch
        if likelihood == "task_mean":
            self.metrics["val_by_batch"] = BatchPerplexity(len(task_names))
            self.monitor = "val_by_batch/nll"
        # Plain values only, so that a checkpoint can be read with weights_only=True.
        self.save_hyperparameters(
            {
                "tau": self.tau,
                "parameterization": self.parameterization,
                "penalty": penalty,
                "estimator": estimator,
                "likelihood": likelihood,
                "rank": rank,
                "alpha": alpha,
                "layers": list(layers),
                "task_names": list(task_names),
                "task_documents": list(task_documents),
                "n_tokens": n_tokens,
                "lr": self.lr,
            },
            logger=False,
        )

    @classmethod
    def from_hyperparameters(cls, model: PreTrainedModel, hyperparameters: dict) -> "HierarchicalLoRA":
        """The module that a checkpoint is of, its factors not yet loaded.

        Args:
            model: the backbone that it was trained on.
            hyperparameters: a checkpoint's `hyper_parameters`.
        """
        known = {key: value for key, value in hyperparameters.items() if key != "layers"}
        return cls(model, target_modules=hyperparameters["layers"], **known)

    def start_from(self, checkpoint: dict) -> None:
        """Begin at another run's θ and Θ, whatever its τ and parameterization; the optimiser begins anew.

        Args:
            checkpoint: a best.ckpt, loaded.

        Raises:
            UserError: it is of other tasks, layers, rank or α.
        """
        for key in ("task_names", "layers", "rank", "alpha"):
            theirs, ours = checkpoint["hyper_parameters"][key], self.hparams[key]
            if theirs != ours:
                raise UserError(f"init_from: that run's {key} is not this one's ({theirs}, not {ours})")
        self.adapters.start_from(_of_adapters(checkpoint))

    def load_factors(self, checkpoint: dict) -> None:
        """Take over θ and Θ as they are, all of them, from a checkpoint of this very form."""
        self.adapters.load_state_dict(_of_adapters(checkpoint))

    @property
    def tasks(self):
        """Each task's LoRA by name: `model.tasks["name"]["layer"].A`."""
        return self.adapters.tasks

    @property
    def mean(self):
        """The hierarchical mean Θ: `model.mean["layer"].A`."""
        return self.adapters.mean_lora

    def document_nll(self, batch: Batch, adapted: bool = True) -> Tensor:
        """[R] nats of each document under its task's θ_d, or under the bare backbone."""
        # The products with A and B are the backbone's kind.
        theta = self.adapters.rows(batch["task"], self.backbone.dtype)[0] if adapted else None
        return self.nll_under(batch, theta)

    def nll_under(self, batch: Batch, theta: Tensor | None) -> Tensor:
        """[R] nats of each document under given factors.

        Args:
            theta: [R, P], or [P] for all documents, in the backbone's dtype; None for the bare backbone.
        """
        with self.adapters.routed(theta):
            hidden = self.backbone.hidden(batch["input_ids"], batch.get("attention_mask"))
        return document_nll(hidden, batch["labels"], self.backbone.head)

    @property
    def has_prior(self) -> bool:
        """Whether U has a prior's part: not at τ = 0 (it is flat), nor at τ = ∞ (there are no deviations)."""
        return 0 < self.tau < math.inf

    def prior(self) -> Tensor:
        """The prior's part of U, in nats."""
        stored = self.adapters.stored
        if not self.has_prior or stored is None:
            return torch.zeros((), device=self.adapters.mean.device)
        return prior_energies(self.adapters.deviation(stored), *self._prior).sum()

    @property
    def _prior(self) -> Prior:
        return Prior(self.tau, self.penalty, self.adapters.layout.sizes)

    def objective(self, batch: Batch, n_processes: int = 1) -> Objective:
        """U/T from one batch of mixed tasks: over an epoch's batches its mean is U/T, and so is its gradient's.

        Args:
            batch: of Documents; this process's share of it where there are several.
            n_processes: Lightning averages gradients over them.
        """
        task, scored = batch["task"], n_scored(batch["labels"])
        by_document = self.has_prior and self.estimator == "by_document"
        theta, energies = self.adapters.rows(task, self.backbone.dtype, self._prior if by_document else None)
        nll = self.nll_under(batch, theta)
        batches, n_d = batch["batches"] * n_processes, self.task_documents
        if self.likelihood == "sum":
            likelihood, unit = likelihood_estimate(nll, batches), self.n_tokens
        else:
            likelihood, unit = task_mean_estimate(nll, scored, task, n_d), 1
        prior = self.prior() if energies is None else prior_estimate(energies, task, n_d, batches)
        return Objective(likelihood / unit, prior / unit, nll.detach().sum(), scored.sum().to(nll.dtype))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """U/T from one batch; Lightning averages it over the batches of a step and over processes.

        Returns:
            loss: of this process's documents; and the Objective of all processes' documents.
        """
        objective = self.objective(batch, self.trainer.world_size)
        loss = objective.likelihood + objective.prior
        if self.tau == 0:
            # Nothing depends on Θ; torch's DistributedDataParallel wants a gradient all the same.
            loss = loss + 0.0 * self.adapters.mean.sum()
        shared = self._over_processes(torch.stack(objective).detach())
        if not shared[:2].isfinite().all():
            self._not_finite(batch, float(shared[:2].sum()))
        likelihood, prior = shared[:2] / self.trainer.world_size
        return {
            "loss": loss,
            "likelihood": likelihood,
            "prior": prior,
            "nats": shared[2],
            "tokens": shared[3],
        }

    def _not_finite(self, batch: Batch, loss: float) -> None:
        with torch.no_grad():
            lost = batch["task"][~self.document_nll(batch).isfinite()].unique().tolist()
        tasks = ", ".join(repr(self.adapters.task_names[d]) for d in lost)
        whose = f"by documents of {tasks}" if tasks else "by the prior, or by documents of another process"
        what = f"at step {self.global_step + 1} the loss is {loss}, {whose}"
        if self.nonfinite == "stop":
            raise NonFiniteLoss(what)
        log.warning("%s: the step is not taken (optim.nonfinite=skip)", what)
        self._skips = True

    def _over_processes(self, values: Tensor) -> Tensor:
        """Sums over the processes of what each has, so that what is logged is the whole batch's."""
        return (
            self.trainer.strategy.reduce(values, reduce_op="sum") if self.trainer.world_size > 1 else values
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._skips:
            self._skips = False
            for parameter in self.adapters.parameters():
                parameter.grad = None
        stored = self.adapters.stored
        if self.trainer.world_size == 1 or stored is None or stored.grad is None:
            return
        if stored.grad.is_sparse:
            stored.grad = sum_over_processes(stored.grad) / self.trainer.world_size

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's trainer.gradient_clip_val: over all tasks' gradients and Θ's together, by norm or by value."""
        if not gradient_clip_val:
            return
        parts = []
        for parameter in self.adapters.parameters():
            gradient = parameter.grad
            if gradient is not None and gradient.is_sparse:  # which torch's own clipping cannot do
                gradient = parameter.grad = gradient.coalesce()
                gradient = gradient._values()  # in which changes are the gradient's
            if gradient is not None:
                parts.append(gradient)
        if gradient_clip_algorithm == "value":
            for part in parts:
                part.clamp_(-gradient_clip_val, gradient_clip_val)
        else:
            norm = torch.nn.utils.get_total_norm(parts)
            for part in parts:
                part.mul_((gradient_clip_val / (norm + 1e-6)).clamp(max=1))

    def metric(self, name: str) -> Metric:
        """One of the perplexities that are kept: val, test, base_test, val_by_batch."""
        return cast(Metric, self.metrics[name])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        nll, scored = self.document_nll(batch), n_scored(batch["labels"])
        for name in ("val", "val_by_batch"):
            if name in self.metrics:
                self.metric(name).update(nll, scored, batch["task"])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        scored = n_scored(batch["labels"])
        self.metric("test").update(self.document_nll(batch), scored, batch["task"])
        self.metric("base_test").update(self.document_nll(batch, adapted=False), scored, batch["task"])

    def on_validation_epoch_start(self) -> None:
        for name in ("val", "val_by_batch"):
            if name in self.metrics:
                self.metric(name).reset()
        if self.tau == 0:
            # The limit τ → 0+ of the posterior's Θ; it has no influence on any θ_d.
            self.adapters.move_mean_to_average()

    def on_validation_epoch_end(self) -> None:
        self._log_perplexity("val")
        if "val_by_batch" in self.metrics:
            by_batch = self.metric("val_by_batch").compute()
            self.log_dict({f"val_by_batch/{k}": by_batch[k].float() for k in ("nll", "perplexity")})

    def on_test_epoch_start(self) -> None:
        self.metric("test").reset()
        self.metric("base_test").reset()

    def on_test_epoch_end(self) -> None:
        self._log_perplexity("test")
        base = self.metric("base_test").compute()
        self.log("base_test/perplexity", base["perplexity"], rank_zero_only=True)

    def _log_perplexity(self, split: str) -> None:
        result = self.metric(split).compute()
        self.log_dict({f"{split}/{k}": result[k].float() for k in ("nll", "perplexity", "perplexity_macro")})
        if split == "val":
            self.log("val_perplexity", result["perplexity"].float(), prog_bar=True, logger=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parameters = self.adapters.parameters()
        if self.estimator == "by_document":
            return RowwiseAdamW(parameters, self.lr, self.betas, self.eps)
        return torch.optim.AdamW(parameters, self.lr, self.betas, self.eps, weight_decay=0.0, fused=True)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Leave the frozen backbone out."""
        checkpoint["state_dict"] = {
            key: value for key, value in checkpoint["state_dict"].items() if key.startswith("adapters.")
        }


def _of_adapters(checkpoint: dict) -> dict[str, Tensor]:
    prefix = "adapters."
    state = checkpoint["state_dict"]
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def effective_parameterization(tau: float, parameterization: str) -> str:
    """The form that is trained: shared at τ = ∞, centered at τ = 0, else the one asked for."""
    if math.isinf(tau):
        return "shared"
    return "centered" if tau == 0 else parameterization


def learning_rate(tau: float, parameterization: str) -> float:
    """The default learning rate.

    Where the centered form is asked for: the paper's rule, 1e-5 · τ, and 1e-4 at τ = 0 (Table 1). Else,
    and at τ = ∞: 1e-3 at every τ, so that the limits are trained no worse than what lies between them
    (experiments/stdlib: at τ = 0 the paper's rate is too low by far).
    """
    if parameterization != "centered" or math.isinf(tau):
        return 1e-3
    return 1e-4 if tau == 0 else 1e-5 * tau
