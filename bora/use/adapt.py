"""Fit new tasks from a run's prior: θ_new ~ N(Θ, τ⁻¹ I) with Θ fixed.

Each new task minimises −Σ log p(document | θ_new) + τ/2 ‖θ_new − Θ‖² (eq. 6 with Θ given). Given Θ the tasks are
independent and AdamW updates each row separately, so tasks fitted together reach the same optima as one by one. On the
way there a task takes more steps in an epoch when fitted with others, since batches mix tasks.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bora.bayes.levels import place_new
from bora.bayes.model import HierarchicalLoRA
from bora.data.batches import Batches, Documents, loader
from bora.errors import UserError, require_count, require_positive
from bora.lib.console import progress
from bora.model.batch import to_device
from bora.runs.directory import CONFIG, PER_TASK_COLUMNS, RunDirectory
from bora.runs.values import versions
from bora.train.checkpoint import AtomicCheckpoints, find_nonfinite
from bora.use.new_tasks import NewDocuments, new_tasks
from bora.use.restore import Restored

# For the cross-validation that chooses the number of epochs.
MAX_EPOCHS, FOLDS, ENOUGH_HELD_OUT = 10, 5, 32


def train_epochs(
    model: HierarchicalLoRA, documents: Documents, epochs: int, lr: float, batch_size: int = 16, seed: int = 0
) -> Iterator[int]:
    """Minimise U/T over the parameters that are not fixed; after each epoch yield the number of epochs done.

    Args:
        documents: documents of the model's tasks.
        epochs: passes over the documents.
        lr: AdamW's learning rate.
        batch_size: average number of documents in a step.
        seed: seed of the documents' order.

    Raises:
        UserError: training diverged.
    """
    optimiser = model.optimizer(lr)
    batches = Batches([len(d.ids) for d in documents.documents], batch_size, seed=seed)
    steps = iter(progress(range(epochs * len(batches)), "adapt"))
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for batch in loader(documents, batches):
            next(steps)
            optimiser.zero_grad()
            model.objective(to_device(batch, model.device)).loss.backward()
            model.adapters.before_step()
            optimiser.step()
        if (lost := find_nonfinite(model.adapters)) is not None:
            raise UserError(f"training diverged: {lost} is not finite; lower the learning rate (lr={lr:g})")
        yield epoch + 1


def adapt(
    restored: Restored,
    new: NewDocuments,
    tau: float,
    epochs: int | None = None,
    lr: float = 1e-3,
    batch_size: int = 16,
    seed: int = 0,
) -> tuple[HierarchicalLoRA, dict[str, Any]]:
    """Fit the MAP estimate of each new task.

    Args:
        restored: the run whose Θ is the prior's mean.
        new: the new tasks' documents.
        tau: precision of the prior, 0 < τ < ∞.
        epochs: passes over the documents. None: the best number for documents held out of a first fit, see
            `_cross_validate`; 1 if no task has two different texts.
        lr, batch_size, seed: see `train_epochs`.

    Returns:
        The model; and for summary.json the arguments, with the number of epochs taken, and `held_out_nll`, nats a
        token after 0, 1, … epochs, or None if nothing was held out.

    Raises:
        UserError: τ is out of range, or training diverged.
    """
    require_positive(lr=lr)
    require_count(batch_size=batch_size, **({} if epochs is None else {"epochs": epochs}))
    names = list(dict.fromkeys(new.tasks))
    index = [names.index(t) for t in new.tasks]
    known, levels, units = restored.model.adapters.levels, None, None
    if known is not None:
        levels, units = place_new(known, new.levels, index)
    documents = Documents(new.encoded, index, units=units)

    def untrained(part: Documents) -> HierarchicalLoRA:
        counts = part.rows()[:, 0].bincount(minlength=len(names)).tolist()
        return new_tasks(restored, names, counts, sum(e.n_scored for e in part.documents), tau, levels)

    options: dict[str, Any] = {"lr": lr, "batch_size": batch_size, "seed": seed}
    held_out_nll = None
    if epochs is None:
        held_out_nll = _cross_validate(untrained, documents, new.texts, **options)
        epochs = 1 if held_out_nll is None else int(np.argmin(held_out_nll))
    model = untrained(documents)
    for _ in train_epochs(model, documents, epochs, **options):
        pass
    return model.eval(), {"epochs": epochs, **options, "held_out_nll": held_out_nll}


def _cross_validate(
    untrained: Callable[[Documents], HierarchicalLoRA],
    documents: Documents,
    texts: Sequence[str],
    lr: float,
    batch_size: int,
    seed: int,
) -> list[float] | None:
    """Compute the NLL of held-out documents after each epoch, by cross-validation.

    Each task's distinct texts are dealt out to FOLDS folds (fewer if no task has as many), and each fold in turn is held
    out of a fit to the others, until ENOUGH_HELD_OUT documents have been held out. A single text is never held out.

    Args:
        untrained: returns an untrained model of given documents.
        texts: each document's text.

    Returns:
        NLL after 0 to MAX_EPOCHS epochs, nats a token; None if no task has two different texts.
    """
    by_task = pd.Series(texts).groupby(documents.tasks)
    turn = by_task.transform(lambda own: pd.factorize(own)[0])
    n_folds = min(FOLDS, turn.max() + 1)
    fold = (turn % n_folds).where(by_task.transform("nunique") > 1, -1)
    nats, n_documents, n_tokens = np.zeros(MAX_EPOCHS + 1), 0, 0
    for k in range(n_folds if (fold >= 0).any() else 0):
        rest, held_out = (documents.take(np.flatnonzero(part).tolist()) for part in (fold != k, fold == k))
        model = untrained(rest)
        nats[0] += _total_nll(model, held_out, batch_size)
        for epoch in train_epochs(model, rest, MAX_EPOCHS, lr, batch_size, seed):
            nats[epoch] += _total_nll(model, held_out, batch_size)
        n_documents += held_out.n_documents
        n_tokens += sum(e.n_scored for e in held_out.documents)
        if n_documents >= ENOUGH_HELD_OUT:
            break
    return (nats / n_tokens).tolist() if n_tokens else None


@torch.no_grad()
def _total_nll(model: HierarchicalLoRA, documents: Documents, batch_size: int) -> float:
    batches = documents.by_length(batch_size, model.device, "held-out documents")
    return sum(model.nll(batch).sum().item() for _, batch in batches)


def describe_epochs(epochs: int, held_out_nll: list[float] | None) -> str:
    """Describe the number of epochs taken, and the held-out NLL that chose it."""
    if held_out_nll is None:
        return f"epochs: {epochs}"
    chosen = f"held-out documents have {held_out_nll[epochs]:.4f} nats a token"
    if epochs == 0:
        return f"epochs: 0, the new tasks stay at Θ: {chosen} there, and {min(held_out_nll[1:]):.4f} at best with more"
    more = "; this is the most that was tried, and more may be better: give --epochs" * (epochs == MAX_EPOCHS)
    return f"epochs: {epochs}, {chosen}, and {held_out_nll[0]:.4f} at Θ{more}"


def write_adapted(
    model: HierarchicalLoRA, restored: Restored, documents: NewDocuments, about: dict[str, Any], out: Path
) -> None:
    """Write the files that `bora export`, `generate` and `evaluate` read from a run to the folder `out`.

    Args:
        restored: the run that the model was adapted from.
        about: further entries of summary.json.
    """
    directory = RunDirectory(out)
    shutil.copy(restored.directory.path / CONFIG, out / CONFIG)
    state = {key: value.cpu() for key, value in model.trained_state().items()}
    checkpoint = {"state_dict": state, "hyper_parameters": model.hyperparameters}
    AtomicCheckpoints().save_checkpoint(checkpoint, directory.best)
    tokens = pd.Series([e.n_scored for e in documents.encoded]).groupby(documents.tasks).sum()
    per_task = pd.DataFrame(
        {
            "task": list(model.tasks),
            "n_train": model.task_documents.tolist(),
            "n_val": 0,
            "n_test": 0,
            "train_tokens": tokens[list(model.tasks)].tolist(),
            "test_tokens": 0,
            "distance": model.adapters.distances().tolist(),
        }
    )
    directory.write_trained_on(documents.texts, restored.directory.trained_on() or ())  # Θ was trained on the run's
    directory.write_per_task(per_task.reindex(columns=PER_TASK_COLUMNS))  # nothing is held out
    summary = {
        "tau": model.tau,
        "adapted_from": restored.directory.path.name,
        "n_tasks": len(model.tasks),
        "n_documents": int(model.task_documents.sum()),
        "n_tokens": model.n_tokens,
        "dropped": documents.dropped,
        **documents.truncation.summary(),
        "temperature": None,
        "temperature_note": "not fitted: no document of the new tasks is held out",
        "versions": versions(),
    }
    # Only some runs have the last two.
    kept = {"model", "dtype", "data", "params_per_task", "backbone_sha256", "tokenizer_sha256", "model_folder"}
    shared = {key: value for key, value in restored.summary.items() if key in kept}
    directory.write_summary(summary | shared | about)
