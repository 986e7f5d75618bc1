"""New tasks from the prior: θ_new ~ N(Θ, τ⁻¹ I) with Θ fixed, fitted to a handful of documents::

    bora adapt RUN OUT --data letters.csv --text letter --task writer

For each new task what is minimised is −Σ log p(documents | θ_new) + τ/2 ‖θ_new − Θ‖² (eq. 6 with Θ given). Given
Θ the tasks are independent and AdamW goes by rows, so fitting many at once is fitting each alone.
"""

import argparse
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from bora.bayes.model import HierarchicalLoRA
from bora.commands.exits import cli_errors
from bora.config import MAX_COUNT, MAX_SEED
from bora.data.batches import Batches, Documents, loader
from bora.data.tokens import Encoded
from bora.errors import UserError
from bora.lib.files import make_output_folder
from bora.model.batch import to_device
from bora.runs.directory import CONFIG, PER_TASK_COLUMNS, RunDirectory, versions
from bora.train.checkpoint import AtomicCheckpoints, find_nonfinite
from bora.use.common import destination, whole_folder
from bora.use.restore import Restored, restore
from bora.use.texts import read_texts, sha256


def check_tau(tau: float) -> None:
    """
    Raises:
        UserError: there is nothing to fit with such a prior.
    """
    if not 0 < tau < math.inf:
        raise UserError(f"a new task needs 0 < τ < ∞, not {tau:g}: at 0 Θ says nothing of it, at ∞ it is Θ; give --tau")


def new_tasks(
    restored: Restored, names: Sequence[str], task_documents: Sequence[int], n_tokens: int, tau: float
) -> HierarchicalLoRA:
    """A model of new tasks on a run's backbone: Θ is the run's and fixed, every θ_new starts there.

    Args:
        names: of the new tasks.
        task_documents: N_d, documents of each to learn from.
        n_tokens: scored tokens of all of them.
        tau: precision of the prior, 0 < τ < ∞.

    Raises:
        UserError: τ is out of range.
    """
    check_tau(tau)
    old = restored.model
    model = HierarchicalLoRA(old.backbone, names, task_documents, n_tokens, tau, penalty=old.penalty)
    model.to(old.device)
    model.adapters.start_at(old.adapters.mean)
    model.adapters.mean.requires_grad_(False)
    return model


def fit(
    model: HierarchicalLoRA,
    documents: Documents,
    epochs: int,
    lr: float,
    batch_size: int = 16,
    seed: int = 0,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Minimise U/T over whatever of the model is not fixed.

    Args:
        documents: of the model's tasks.
        epochs: passes over them.
        lr: AdamW's learning rate.
        batch_size: documents a step, on average.
        seed: of their order.
        after_epoch: called with the epoch's number, from 1.
    """
    optimiser = model.optimizer(lr)
    batches = Batches([len(d.ids) for d in documents.documents], batch_size, seed=seed)
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for batch in loader(documents, batches):
            optimiser.zero_grad()
            model.objective(to_device(batch, model.device)).loss.backward()
            optimiser.step()
        after_epoch(epoch + 1)


def adapt(
    restored: Restored,
    encoded: Sequence[Encoded],
    tasks: Sequence[str],
    tau: float,
    epochs: int,
    lr: float = 1e-3,
    batch_size: int = 16,
    seed: int = 0,
) -> HierarchicalLoRA:
    """The MAP estimate of each new task.

    Args:
        restored: the run whose Θ is the prior's mean.
        encoded, tasks: the documents' tokens and the name of each one's task.
        tau: precision of the prior, 0 < τ < ∞.
        epochs, lr, batch_size, seed: see `fit`.

    Raises:
        UserError: τ is out of range, or training diverged.
    """
    names = list(dict.fromkeys(tasks))
    index = [names.index(t) for t in tasks]
    counts = np.bincount(index, minlength=len(names)).tolist()
    model = new_tasks(restored, names, counts, sum(e.n_scored for e in encoded), tau)
    fit(model, Documents(encoded, index, restored.tokens.pad_id), epochs, lr, batch_size, seed)
    lost = find_nonfinite(model.adapters)
    if lost is not None:
        raise UserError(f"training diverged: not all of {lost} is finite; give a learning rate below {lr:g}")
    return model.eval()


def write(model: HierarchicalLoRA, restored: Restored, out: Path, train_tokens: list[int], about: dict) -> None:
    """A folder that `bora export`, `generate` and `evaluate` read as they read a run's.

    Args:
        train_tokens: scored tokens of each task.
        about: for summary.json.
    """
    directory = RunDirectory(out)
    directory.checkpoints.mkdir()
    shutil.copy(restored.directory.path / CONFIG, out / CONFIG)
    state = {key: value.cpu() for key, value in model.trained_state().items()}
    checkpoint = {"state_dict": state, "hyper_parameters": model.hyperparameters}
    AtomicCheckpoints().save_checkpoint(checkpoint, directory.checkpoints / "best.ckpt")
    per_task = pd.DataFrame(
        {
            "task": list(model.tasks),
            "n_train": model.task_documents.tolist(),
            "n_val": 0,
            "n_test": 0,
            "train_tokens": train_tokens,
            "test_tokens": 0,
            "distance": model.adapters.distances().tolist(),
        }
    )
    directory.write_per_task(per_task.reindex(columns=PER_TASK_COLUMNS))  # nothing is held out
    directory.write_summary(about)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bora adapt", description="Fit new tasks from a finished run's prior, its Θ fixed."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run's directory")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to, empty or new")
    parser.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help="the table of the new tasks' documents"
    )
    parser.add_argument("--text", default="text", metavar="COLUMN", help="column with the document (text)")
    parser.add_argument("--task", metavar="COLUMN", help="column with the task; without, as data.task=null")
    parser.add_argument("--tau", type=float, help="precision of the prior (the run's)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the documents (10)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (1e-3)")
    parser.add_argument("--batch-size", type=int, default=16, help="documents a step (16)")
    parser.add_argument("--seed", type=int, default=0, help="of the documents' order (0)")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """What the command does.

    Raises:
        UserError: for whatever in the input cannot be used, before anything is trained.
    """
    for name, low, high in (("epochs", 1, MAX_COUNT), ("batch_size", 1, MAX_COUNT), ("seed", 0, MAX_SEED)):
        if not low <= getattr(arguments, name) <= high:
            raise UserError(f"--{name.replace('_', '-')} must be a whole number from {low} to {high}")
    if not 0 < arguments.lr < math.inf:
        raise UserError(f"--lr {arguments.lr:g}: must be a number above 0")
    out = destination(arguments.out)
    table = read_texts(arguments.data, arguments.text, arguments.task, need_task=True)
    restored = restore(arguments.run)
    named = table[table["task"].str.strip() != ""]
    names = named["task"].str.strip().tolist()
    encoded, truncation = restored.tokens.encode(named)
    kept = [(e, name) for e, name in zip(encoded, names, strict=True) if e.n_scored > 0]
    dropped = {"without a task": len(table) - len(named), "without a token to score": len(named) - len(kept)}
    if not kept:
        raise UserError(f"{arguments.data} has no document with a task and a token to score")
    encoded, tasks = map(list, zip(*kept, strict=True))
    without = sorted(set(names) - set(tasks))
    if without:
        raise UserError(f"task {without[0]!r} has no document with a token to score")
    tau = float(restored.summary["tau"]) if arguments.tau is None else arguments.tau
    check_tau(tau)
    make_output_folder(out)
    model = adapt(restored, encoded, tasks, tau, arguments.epochs, arguments.lr, arguments.batch_size, arguments.seed)
    about = {
        "tau": tau,
        "seed": arguments.seed,
        "adapted_from": arguments.run.name,
        "epochs": arguments.epochs,
        "lr": arguments.lr,
        "n_tasks": len(model.tasks),
        "n_documents": len(encoded),
        "n_tokens": model.n_tokens,
        "dropped": dropped,
        "truncated_documents": truncation.documents,
        "truncated_tokens": truncation.tokens,
    }
    shared = {
        k: restored.summary[k]
        for k in ("model", "dtype", "data", "params_per_task", "backbone_sha256")
        if k in restored.summary
    }
    tokens = dict.fromkeys(model.tasks, 0)
    for e, name in zip(encoded, tasks, strict=True):
        tokens[name] += e.n_scored
    about |= {"data_sha256": sha256(table), "versions": versions()}
    with whole_folder(out) as folder:
        write(model, restored, folder, list(tokens.values()), about | shared)
    for name, n, distance in zip(model.tasks, model.task_documents.tolist(), model.adapters.distances(), strict=True):
        print(f"{name}: {n} documents, ‖θ−Θ‖ {distance:.3f}")
    print("dropped:", ", ".join(f"{n} {why}" for why, n in dropped.items() if n) or "nothing")
    print(f"adapted: {out}")


def main() -> None:
    """Run the command line."""
    arguments = parser().parse_args()
    with cli_errors():
        run(arguments)


if __name__ == "__main__":
    main()
