"""The LightningModule that trains a HierarchicalLoRA to its MAP estimate, validates it and tests it."""

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import Metric

from bora.bayes.adamw import RowwiseAdamW, clip_gradients, gradient_norm, sum_over_processes
from bora.bayes.forms import Shared
from bora.bayes.model import HierarchicalLoRA
from bora.bayes.shrinkage import Profile
from bora.data.batches import Documents, ResumableLoader
from bora.model.batch import Batch
from bora.model.likelihood import n_scored
from bora.train.perplexity import BatchPerplexity, DocumentNLL, Groups, TaskPerplexity, make_profile, paired_difference

log = logging.getLogger(__name__)


class BatchFigures(NamedTuple):
    """The logged figures of a batch, over all processes' documents.

    Attributes:
        step: optimiser steps before it.
        likelihood, prior: as in Objective.
        nats: sum of the documents' NLL.
        tokens: number of scored tokens.
    """

    step: int
    likelihood: float
    prior: float
    nats: float
    tokens: float


class NonFiniteLoss(Exception):
    """A batch's loss is infinite or NaN; the message names the step, and the tasks of documents that caused it."""


class TrainingModule(L.LightningModule):
    """Minimise U(θ, Θ) / T with AdamW (Eide & Frigessi 2024, 3.5).

    Args:
        model: the model to train. If its likelihood is task_mean, BatchPerplexity judges validation, as in the
            published code.
        lr, betas, eps: AdamW's.
        schedule: learning rate over the run's optimiser steps, whatever tasks they contain: constant | linear | cosine,
            the last two falling to 0 at the last possible step.
        warmup_steps: optimiser steps before that, in which the learning rate rises linearly from 0.
        nonfinite: on an infinite or NaN loss, stop the run or skip the step.
        seed: dropout's seed.
        average: validate and keep running averages of θ and Θ; see RowwiseAdamW.
    """

    def __init__(
        self,
        model: HierarchicalLoRA,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        schedule: str = "constant",
        warmup_steps: int = 0,
        nonfinite: str = "stop",
        seed: int = 0,
        average: bool = False,
    ):
        super().__init__()
        self.model, self.average = model, average
        self.lr, self.betas, self.eps, self.nonfinite = lr, betas, eps, nonfinite
        self.schedule, self.warmup_steps, self.seed = schedule, warmup_steps, seed
        self.lr_now = lr  # at the last step
        self._skips = False  # whether to skip the current step
        # Of each batch since the last `read_figures`: steps before it, its figures, its documents' NLL and tasks.
        self._unread: list[tuple[int, Tensor, Tensor, Tensor]] = []
        self.gradient_norms: dict[str, float] = {}  # at the last logged step, before clipping
        self.scales: Sequence[float] = ()  # values of c; validation takes the best Θ + c (θ_d − Θ)
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

    # A checkpoint holds the trained parameters, not the frozen backbone, and is loaded strictly.
    def state_dict(self, *args, **options):
        return self.model.trained_state()

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False) -> None:
        self.model.load_trained_state(state_dict)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Estimate U/T from one batch; Lightning averages it over the batches of a step and over processes.

        Returns:
            The loss of this process's documents. Its figures stay on the device until `read_figures`.
        """
        n = self.trainer.world_size
        if self.model.dropout:  # the same after a resume, but different in each process
            place = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.global_rank])
            torch.manual_seed(int(place.generate_state(1, np.uint64)[0]))
        objective = self.model.objective(batch, n)
        totals = (objective.likelihood / n, objective.prior / n, objective.nll.sum(), objective.scored.sum())
        figures = torch.stack([total.detach().to(objective.nll.dtype) for total in totals])
        if n > 1:  # log the whole batch's figures
            figures = cast(Tensor, self.trainer.strategy.reduce(figures, reduce_op="sum"))
        self._unread.append((self.global_step, figures, objective.nll, batch["task"]))
        if self.nonfinite == "skip" and not figures[:2].isfinite().all():  # waits for the device in every step
            log.warning("%s: the step is skipped (optim.nonfinite=skip)", self._describe_loss(*self._unread[-1]))
            self._skips = True
        return objective.loss

    def read_figures(self) -> list[BatchFigures]:
        """Return the figures of the batches since the last call. This waits for the device, so call it rarely.

        Raises:
            NonFiniteLoss: one of them was not finite, unless such steps are skipped.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return []
        rows = torch.stack([figures for _, figures, *_ in unread]).tolist()
        for (likelihood, prior, *_), batch in zip(rows, unread, strict=True):
            if self.nonfinite == "stop" and not math.isfinite(likelihood + prior):
                raise NonFiniteLoss(self._describe_loss(*batch))
        return [BatchFigures(step, *row) for (step, *_), row in zip(unread, rows, strict=True)]

    def _describe_loss(self, step: int, figures: Tensor, nll: Tensor, task: Tensor) -> str:
        lost = task[~nll.isfinite()].unique().tolist()
        tasks = ", ".join(repr(self.model.adapters.task_names[d]) for d in lost)
        whose = f"caused by documents of {tasks}" if tasks else "caused by the prior or another process's documents"
        return f"at step {step + 1} the loss is {float(figures[:2].sum())}, {whose}"

    def build_optimizer(self) -> RowwiseAdamW:
        """Build AdamW with this module's settings."""
        return self.model.optimizer(self.lr, self.betas, self.eps, self.average)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.build_optimizer()
        if self.schedule == "constant" and not self.warmup_steps:
            return optimizer
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._share_of_rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _share_of_rate(self, step: int) -> float:
        """Return the factor of the learning rate after `step` steps."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.schedule == "constant" or step == 0:
            return 1.0
        # Before training begins, this would make Lightning create the loaders and forget where in the epoch to resume.
        steps = self.trainer.estimated_stepping_batches - self.warmup_steps
        x = min(1.0, (step - self.warmup_steps) / max(1, steps))
        return 1 - x if self.schedule == "linear" else (1 + math.cos(math.pi * x)) / 2

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.lr_now = optimizer.param_groups[0]["lr"]
        self.model.adapters.before_step()
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
        """Return a perplexity metric by its name: val, test, base_test or val_by_batch."""
        return cast(Metric, self.metrics[name])

    def groups(self, dataset: Documents, part: int = 0) -> Groups:
        """Group a split's documents by task (part 0) or by unit of a level (1 … L)."""
        of, levels = dataset.rows()[:, part], self.model.adapters.levels
        n_tasks = len(self.model.tasks)
        if part == 0 or levels is None:
            return Groups(of, n_tasks)
        return Groups(of - levels.first_row(part - 1, n_tasks), len(levels.units[part - 1]))

    def profile(self, part: int = 0) -> Profile:
        """Return the last validation's NLL at `scales`, by task or by unit of a level."""
        return make_profile(self.scales, *self.shrunk.found(), self.groups(self._validated, part))

    def effect(self, part: int | None = None) -> dict[str, Tensor]:
        """Return how much lower θ_d makes the test documents' NLL: see `paired_difference`.

        Args:
            part: what to compare with. None: Θ. 0: θ_d without the task's own deviation. 1 … L: θ_d without the deviation
                of its unit at that level; then the result is by unit.
        """
        nats, tokens = self.tested.found()
        other = nats[1 if part is None else 2 + part]
        return paired_difference(other - nats[0], tokens, self.groups(self._tested, part or 0))

    @property
    def _adamw(self) -> RowwiseAdamW:
        return cast(RowwiseAdamW, self.optimizers(use_pl_optimizer=False))

    # During training, validation uses the averages. Callbacks run before both hooks, so best.ckpt has the averages too.
    def on_validation_start(self) -> None:
        if self.trainer.state.fn == "fit":
            self._adamw.exchange_averages()

    def on_validation_end(self) -> None:
        if self.trainer.state.fn == "fit":
            self._adamw.exchange_averages()

    def keep_mean(self) -> None:
        """Continue from Θ as validated: from its average if there is one. Call this during a validation."""
        self._adamw.restart_average(self.model.adapters.mean)

    def on_validation_epoch_start(self) -> None:
        for name in self.validates:
            self.metric(name).reset()
        if self.scales:
            self._validated = cast(ResumableLoader, self.trainer.val_dataloaders).dataset
            self.shrunk = DocumentNLL(len(self.scales), self._validated.n_documents).to(self.device)
        self.model.adapters.before_evaluation()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        scored = n_scored(batch["labels"])
        if self.scales:
            nll = torch.stack([self.model.nll(batch, c) for c in self.scales])
            self.shrunk.update(nll, scored, batch["document"])
            return
        nll = self.model.nll(batch)
        for name in self.validates:
            self.metric(name).update(nll, scored, batch["task"])

    def on_validation_epoch_end(self) -> None:
        if self.scales:
            nats, _ = self.shrunk.found()
            best = int(nats.sum(dim=1).argmin())
            own = self.shrunk.nats[best], self.shrunk.tokens  # this process's; the metric sums over all
            self.metric("val").update(*own, self.groups(self._validated).of.to(self.device))
            self.log("val/c", float(self.scales[best]), rank_zero_only=True)
        self._log_perplexity("val")
        if "val_by_batch" in self.validates:
            by_batch = self.metric("val_by_batch").compute()
            self.log_dict({f"val_by_batch/{k}": by_batch[k].float() for k in ("nll", "perplexity")})

    def _n_parts(self) -> int:
        """Return how many deviations make up θ_d with levels; 0 without levels."""
        levels = self.model.adapters.levels
        return 0 if levels is None else 1 + len(levels.units)

    def on_test_epoch_start(self) -> None:
        self.metric("test").reset()
        self.metric("base_test").reset()
        self._tested = cast(ResumableLoader, self.trainer.test_dataloaders).dataset
        self.tested = DocumentNLL(2 + self._n_parts(), self._tested.n_documents).to(self.device)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        nll, scored = self.model.nll(batch), n_scored(batch["labels"])
        self.metric("test").update(nll, scored, batch["task"])
        under_mean = nll if isinstance(self.model.adapters, Shared) else self.model.nll(batch, "mean")
        without = [self.model.nll(batch, without=part) for part in range(self._n_parts())]
        self.tested.update(torch.stack([nll, under_mean, *without]), scored, batch["document"])
        self.metric("base_test").update(self.model.nll(batch, "base"), scored, batch["task"])

    def on_test_epoch_end(self) -> None:
        self.tested.found()  # while the processes can still communicate
        self._log_perplexity("test")
        base = self.metric("base_test").compute()
        self.log("base_test/perplexity", base["perplexity"], rank_zero_only=True)

    def _log_perplexity(self, split: str) -> None:
        result = self.metric(split).compute()
        self.log_dict({f"{split}/{k}": result[k].float() for k in ("nll", "perplexity", "perplexity_macro")})
