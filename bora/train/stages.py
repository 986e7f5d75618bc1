"""`tau=learn`: train Θ until validation hardly improves, then the tasks' deviations, then shrink these by validation.

The deviations are trained nearly without a prior, and each validation tries Θ + c δ_d at a few values of c. Meanwhile Θ
is held fixed unless validation prefers the whole deviations, c = 1, since deviations that overfit would spoil it. The
epoch that validation prefers, at its best c, is kept; at the end c is refined, and chosen for each task
(bora.bayes.shrinkage). The result is an ordinary run at the τ equivalent to c, or at τ = ∞ if validation prefers only Θ.
"""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from scipy.stats import t as student_t
from torch import Tensor

from bora.bayes.forms import Staged
from bora.bayes.saved import MEAN
from bora.bayes.shrinkage import FREE_TAU, Shrinkage, equivalent_tau, shrink
from bora.lib.console import tell
from bora.runs.checkpoints import load_own
from bora.train.module import TrainingModule
from bora.train.progress import Progress, steps_an_epoch

SCALES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)  # values of c; a validation tries those around the last best
MAX_SCALES = 4  # values of c that a validation tries; the first one tries all
N_REFINED = 7  # values of c tried at the end, from 0 to twice the best of SCALES
SHARE_OF_TASKS = 1 / 3  # of a run's steps, kept for the deviations even if Θ still improves
LEAST_GAIN = 0.01  # nats a token; if an epoch of Θ alone gains less, the deviations' stage begins
LEAST_STEPS = 20  # fewest steps over which to judge that gain, since a few steps never gain much
LEAST = 0.01  # c of a level that validation would leave out, to keep its τ finite
LEARNED = "learned"  # key in best.ckpt, once that is an ordinary run's

log = logging.getLogger(__name__)


class Stages(Callback):
    """Switch from training Θ to the deviations, and later stop, when validation no longer improves.

    Args:
        best: best.ckpt.
        progress: records the validations.
        patience: validations without improvement that end a stage.

    Attributes:
        began: number of validations before the deviations' stage; None until it begins.
        tried: the best c of each validation since then.
        mean: [P] Θ of the best validation before then.
    """

    def __init__(self, best: Path, progress: Progress, patience: int) -> None:
        self.best, self.progress, self.patience = best, progress, patience
        self.began: int | None = None
        self.tried: list[float] = []
        self.mean: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"began": self.began, "tried": self.tried, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.began, self.tried, self.mean = state["began"], state["tried"], state["mean"]

    def on_train_start(self, trainer: L.Trainer, module) -> None:
        if self.began is not None:
            self._deviate(module)
            trainer.should_stop |= self._waited() >= self.patience

    def on_validation_end(self, trainer: L.Trainer, module) -> None:
        if trainer.state.fn != "fit":
            return
        adapters, history = _adapters(module), self.progress.history
        if self.began is None and history[-1] is self.progress.best:
            self.mean = adapters.mean.detach().cpu().clone()
        if self.began is not None:
            self.tried.append(trainer.callback_metrics["val/c"].item())
            learned = not adapters.holds_mean
            self._deviate(module)
            if learned and adapters.holds_mean:
                module.keep_mean()
            trainer.should_stop |= self._waited() >= self.patience
        elif self._waited() >= self.patience or self._slows(trainer) or self._must_begin(trainer):
            assert self.mean is not None
            self.began = len(history)
            adapters.start_at(self.mean.to(adapters.mean.device))
            module.keep_mean()
            self._deviate(module)
            tell(f"keeping Θ from epoch {self.progress.best.epoch}; now training the tasks' deviations from it")

    def _deviate(self, module: TrainingModule) -> None:
        """Train the deviations, and Θ with them while validation prefers them whole."""
        adapters = _adapters(module)
        adapters.deviates, adapters.holds_mean = True, self.tried[-1:] != [SCALES[-1]]
        # c falls as the deviations overfit, sometimes by more than one step, and seldom rises.
        last = SCALES.index(self.tried[-1]) if self.tried else None
        module.scales = SCALES if last is None else SCALES[max(0, last - 2) : last + MAX_SCALES - 2]

    def _waited(self) -> int:
        """Count the validations of this stage since the best one."""
        history = self.progress.history
        return len(history) - max(history.index(self.progress.best) + 1, self.began or 0)

    def _slows(self, trainer: L.Trainer) -> bool:
        """Return whether the last epoch gained less than LEAST_GAIN."""
        history = self.progress.history
        since = history[-1].step - max(LEAST_STEPS, steps_an_epoch(trainer))
        before = [validation.nll for validation in history if validation.step <= since]
        return bool(before) and min(before) - self.progress.best.nll < LEAST_GAIN

    def _must_begin(self, trainer: L.Trainer) -> bool:
        """Return whether the deviations must begin now to get their share of the steps, and one validation."""
        total, done = trainer.estimated_stepping_batches, trainer.global_step
        return total - done <= max(total * SHARE_OF_TASKS, done / len(self.progress.history))

    def conclude(self, trainer: L.Trainer, module: TrainingModule, validate: Callable[[], None]) -> dict[str, Any]:
        """Shrink the best epoch's deviations by validation, in the model and in best.ckpt.

        Args:
            module: its model is best.ckpt's.
            validate: runs validation at `module.scales`.

        Returns:
            What was learned: see `_shrink`.
        """
        adapters, checkpoint = _adapters(module), load_own(self.best)
        adapters.deviates = True
        if not self.tried:
            log.warning(
                "tau=learn: the run ended before a validation of the tasks' deviations, so only Θ is kept; train longer"
            )
        if LEARNED not in checkpoint:  # otherwise the run was interrupted after this
            place = self.progress.history.index(self.progress.best) - (self.began or math.inf)
            learned = self._shrink(module, validate, None if place < 0 else self.tried[int(place)])
            checkpoint[LEARNED], state, known = learned, module.state_dict(), checkpoint["hyper_parameters"]
            known["tau"] = learned["tau"]
            if math.isinf(learned["tau"]):
                state = {name: values for name, values in state.items() if name.endswith(MEAN)}
                known.pop("levels", None)
            elif adapters.levels is not None:
                known["levels"]["taus"] = [level["tau"] for level in learned["levels"].values()]
            checkpoint["state_dict"] = state
            if trainer.is_global_zero:
                trainer.strategy.checkpoint_io.save_checkpoint(checkpoint, self.best)
            trainer.strategy.barrier()
        module.scales = ()
        return checkpoint[LEARNED]

    def _shrink(self, module: TrainingModule, validate: Callable[[], None], near: float | None) -> dict[str, Any]:
        """Shrink the deviations by validation: each task's by its own c; with levels all by one c, then level by level.

        Args:
            near: the best of SCALES; None if validation prefers Θ.

        Returns:
            What was learned, in plain values: `c`, 0 if validation prefers only Θ, and `tau`, equivalent to it;
            if the NLL is convex, `c_interval` and `tau_interval`, 95 % over tasks (a level's over its units), unless all
            of it is out of range; `c_spread`, the standard deviation of the tasks' own c; `c_by_task`; with levels
            `levels`, the same for each level.
        """
        adapters = _adapters(module)
        found = None if near is None else self._search(module, validate, min(1, 2 * near), 1)
        if found is None or found.common == 0:
            adapters.stored.data.zero_()
            return {"tau": math.inf, "c": 0.0, "c_spread": 0.0, "c_by_task": [0.0] * len(module.model.tasks)}
        if adapters.levels is None:
            learned = _describe(found, module, slice(None)) | {"c_by_task": found.by_task.tolist()}
            adapters.stored.data.mul_(found.by_task.to(adapters.stored)[:, None])
            return learned
        c, parts = found.common, {}
        adapters.stored.data.mul_(c)
        n_tasks = len(module.model.tasks)
        starts = [*(adapters.levels.first_row(level, n_tasks) for level in range(len(adapters.levels.units))), None]
        rows = {0: slice(n_tasks)} | {i + 1: slice(*starts[i : i + 2]) for i in range(len(starts) - 1)}
        for part in sorted(rows, reverse=True):
            adapters.part = part
            found = self._search(module, validate, min(2, 1 / c), 1 / c)
            if part and found.common == 0:
                tell(f"{adapters.levels.columns[part - 1]}: validation would leave it out; its c is set to {LEAST}")
            found = found._replace(common=max(found.common, LEAST / c))
            parts[part] = _describe(found, module, rows[part], c)
            adapters.stored.data[rows[part]] *= found.common
        adapters.part = None
        above = {name: parts[i + 1] for i, name in enumerate(adapters.levels.columns)}
        return parts[0] | {"c_by_task": [parts[0]["c"]] * n_tasks, "levels": above}

    def _search(self, module: TrainingModule, validate: Callable[[], None], largest: float, limit: float) -> Shrinkage:
        """Choose c by validation, in common and by task, up to `largest`; if the common c is `largest`, up to `limit`."""
        module.scales = torch.linspace(0, largest, N_REFINED, dtype=torch.float64).tolist()
        validate()
        shrunk = shrink(module.profile(_adapters(module).part or 0))
        return self._search(module, validate, limit, limit) if shrunk.common == largest < limit else shrunk


def _describe(found: Shrinkage, module: TrainingModule, rows: slice, before: float = 1.0) -> dict[str, Any]:
    """Describe the c and τ found for some rows of the matrix; see Stages._shrink.

    Args:
        before: the c by which the rows have already been multiplied.
    """
    squares = float(_adapters(module).stored.data[rows].double().square().sum())
    h = found.curvature * module.model.n_tokens / squares
    c = before * found.common
    said: dict[str, Any] = {"tau": equivalent_tau(c, FREE_TAU, h), "c": c, "c_spread": before * found.spread}
    half = float(student_t.ppf(0.975, found.n_tasks - 1)) * found.error if found.n_tasks > 1 else math.nan
    low, high = (min(1.0, max(0.0, before * (found.lowest + sign * half))) for sign in (-1, 1))
    if math.isfinite(half) and low < high:  # otherwise the NLL is not convex, or all of the interval is beyond an end
        said |= {"c_interval": [low, high], "tau_interval": [equivalent_tau(end, FREE_TAU, h) for end in (high, low)]}
    return said


def _adapters(module: TrainingModule) -> Staged:
    return cast(Staged, module.model.adapters)
