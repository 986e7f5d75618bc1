"""The LightningModule: how a HierarchicalLoRA is trained to its MAP estimate, validated and tested."""

import logging
from typing import cast

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

from bora.bayes.adamw import clip_gradients, gradient_norm, sum_over_processes
from bora.bayes.model import HierarchicalLoRA
from bora.bayes.objective import Objective
from bora.model.batch import Batch
from bora.model.likelihood import n_scored
from bora.train.perplexity import BatchPerplexity, TaskPerplexity

log = logging.getLogger(__name__)


class NonFiniteLoss(Exception):
    """A batch's loss is infinite or undefined; the message says in which step, and by whose documents."""


class TrainingModule(L.LightningModule):
    """Minimise U(θ, Θ) / T with AdamW (Eide & Frigessi 2024, 3.5).

    Args:
        model: what is trained. With its likelihood task_mean, validation is judged by BatchPerplexity, as in the
            published code.
        lr, betas, eps: AdamW's.
        nonfinite: on an infinite or NaN loss, stop the run or skip the step.
    """

    def __init__(
        self,
        model: HierarchicalLoRA,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        nonfinite: str = "stop",
    ):
        super().__init__()
        self.model = model
        self.lr, self.betas, self.eps, self.nonfinite = lr, betas, eps, nonfinite
        self._skips = False  # the step that is being taken
        self.gradient_norms: dict[str, float] = {}  # of the last logged step, before clipping
        if model.adapters.sparse and model.adapters.stored is not None:
            # Its gradient is summed over processes in on_before_optimizer_step: torch's
            # DistributedDataParallel expects a dense one.
            self._ddp_params_and_buffers_to_ignore = ["model.adapters.stored"]
        n_tasks, splits = len(model.tasks), ("val", "test", "base_test")
        perplexities: dict[str, Metric] = {split: TaskPerplexity(n_tasks) for split in splits}
        self.validates = ["val"]  # metrics; the last one stops training and chooses the epoch
        if model.likelihood == "task_mean":
            perplexities["val_by_batch"] = BatchPerplexity(n_tasks)
            self.validates.append("val_by_batch")
        self.metrics = torch.nn.ModuleDict(perplexities)
        self.monitor = f"{self.validates[-1]}/nll"
        # Plain values only, so that a checkpoint can be read with weights_only=True.
        self.save_hyperparameters(model.hyperparameters, logger=False)

    # A checkpoint holds what is trained, not the frozen backbone, and is loaded strictly.
    def state_dict(self, *args, **options):
        return self.model.trained_state()

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False) -> None:
        self.model.load_trained_state(state_dict)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Estimate U/T from one batch; Lightning averages it over the batches of a step and over processes.

        Returns:
            loss: of this process's documents; and the Objective of all processes' documents.
        """
        n = self.trainer.world_size
        objective = self.model.objective(batch, n)
        everyones = torch.stack(objective).detach()
        if n > 1:  # what is logged is the whole batch's
            everyones = cast(Tensor, self.trainer.strategy.reduce(everyones, reduce_op="sum"))
        if not everyones[:2].isfinite().all():
            self._not_finite(batch, float(everyones[:2].sum()))
        return {"loss": objective.loss, **Objective(*everyones[:2] / n, *everyones[2:])._asdict()}

    def _not_finite(self, batch: Batch, loss: float) -> None:
        with torch.no_grad():
            lost = batch["task"][~self.model.nll(batch).isfinite()].unique().tolist()
        tasks = ", ".join(repr(self.model.adapters.task_names[d]) for d in lost)
        whose = f"by documents of {tasks}" if tasks else "by the prior, or by documents of another process"
        what = f"at step {self.global_step + 1} the loss is {loss}, {whose}"
        if self.nonfinite == "stop":
            raise NonFiniteLoss(what)
        log.warning("%s: the step is skipped (optim.nonfinite=skip)", what)
        self._skips = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.model.optimizer(self.lr, self.betas, self.eps)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._skips:
            self._skips = False
            for parameter in self.model.adapters.parameters():
                parameter.grad = None
        stored, n = self.model.adapters.stored, self.trainer.world_size
        if n > 1 and stored is not None and stored.grad is not None and stored.grad.is_sparse:
            stored.grad = sum_over_processes(stored.grad) / n
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            norms = {"tasks": gradient_norm(stored), "mean": gradient_norm(self.model.adapters.mean)}
            self.gradient_norms = {f"grad_norm/{k}": norm for k, norm in norms.items() if norm is not None}

    def configure_gradient_clipping(
        self, optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if gradient_clip_val:
            by_value = gradient_clip_algorithm == "value"
            clip_gradients(self.model.adapters.parameters(), gradient_clip_val, by_value)

    def metric(self, name: str) -> Metric:
        """Return one of the perplexities that are kept: val, test, base_test, val_by_batch."""
        return cast(Metric, self.metrics[name])

    def on_validation_epoch_start(self) -> None:
        for name in self.validates:
            self.metric(name).reset()
        self.model.adapters.before_evaluation()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        nll, scored = self.model.nll(batch), n_scored(batch["labels"])
        for name in self.validates:
            self.metric(name).update(nll, scored, batch["task"])

    def on_validation_epoch_end(self) -> None:
        self._log_perplexity("val")
        if "val_by_batch" in self.validates:
            by_batch = self.metric("val_by_batch").compute()
            self.log_dict({f"val_by_batch/{k}": by_batch[k].float() for k in ("nll", "perplexity")})

    def on_test_epoch_start(self) -> None:
        self.metric("test").reset()
        self.metric("base_test").reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        scored = n_scored(batch["labels"])
        self.metric("test").update(self.model.nll(batch), scored, batch["task"])
        self.metric("base_test").update(self.model.nll(batch, "base"), scored, batch["task"])

    def on_test_epoch_end(self) -> None:
        self._log_perplexity("test")
        base = self.metric("base_test").compute()
        self.log("base_test/perplexity", base["perplexity"], rank_zero_only=True)

    def _log_perplexity(self, split: str) -> None:
        result = self.metric(split).compute()
        self.log_dict({f"{split}/{k}": result[k].float() for k in ("nll", "perplexity", "perplexity_macro")})
