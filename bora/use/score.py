"""Score new documents under a run's models: perplexities, and log p(text | θ_d) for p(d | text) ∝ p(d) p(text | θ_d)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from bora.bayes.model import HierarchicalLoRA, Under
from bora.data.batches import Documents
from bora.data.tokens import Encoded
from bora.errors import UserError
from bora.model.batch import to_device
from bora.model.likelihood import n_scored
from bora.train.perplexity import TaskPerplexity
from bora.use.restore import Restored

# Takes a loop's steps and what it computes; gives the same steps, and may show them, as bora.lib.console.progress.
Progress = Callable[[Sequence, str], Iterable]
# Column → the model that it is of.
MODELS: dict[str, Under] = {"perplexity": "task", "mean_model_perplexity": "mean", "base_model_perplexity": "base"}


@torch.no_grad()
def perplexities(
    restored: Restored, table: pd.DataFrame, batch_size: int, progress: Progress = lambda steps, what: steps
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Compute the perplexity of documents under their own task's θ_d, under Θ and under the frozen backbone.

    Documents are scored as in training, with the same prompt and the same cut; padding is never scored.

    Args:
        table: columns task and text; every task is one of the run's.
        batch_size: documents in a forward.

    Returns:
        A row a task that has a scored token, in the run's order: task, n_documents, n_tokens (scored), nll (nats a
        token) and MODELS' columns; and MODELS' columns over all tokens, with `perplexity_macro`, the plain mean over
        those tasks, and `n_truncated` documents.
    """
    model, names = restored.model, restored.model.adapters.task_names
    encoded, truncation = restored.tokens.encode(table)
    tasks = [names.index(task) for task in table["task"]]
    documents = Documents(encoded, tasks, restored.tokens.pad_id)
    metrics = {column: TaskPerplexity(len(names)) for column in MODELS}
    # By length, as in the run's own test, to pad little.
    order = np.argsort([len(e.ids) for e in encoded], kind="stable").tolist()
    for start in progress(range(0, len(order), batch_size), "perplexity"):
        batch = to_device(documents[order[start : start + batch_size], 1], model.device)
        for column, kind in MODELS.items():
            nll = model.nll(batch, kind)
            metrics[column].update(nll.cpu(), n_scored(batch["labels"]).cpu(), batch["task"].cpu())
    found = {column: metric.compute() for column, metric in metrics.items()}
    per_task = pd.DataFrame(
        {
            "task": names,
            "n_documents": np.bincount(tasks, minlength=len(names)),
            "n_tokens": found["perplexity"]["task_tokens"].long().tolist(),
            "nll": found["perplexity"]["task_nll"].tolist(),
        }
        | {column: result["task_perplexity"].tolist() for column, result in found.items()}
    )
    per_task = per_task[per_task["n_tokens"] > 0].reset_index(drop=True)
    overall = {column: result["perplexity"].item() for column, result in found.items()}
    overall |= {"perplexity_macro": per_task["perplexity"].mean(), "n_truncated": truncation.documents}
    return per_task, overall


@dataclass(frozen=True)
class Likelihoods:
    """log p(text | θ_d) of N documents under D tasks.

    Attributes:
        nats: [N, D] float64; 0 for a document without a token to score.
        n_scored: [N] tokens, the same for every task.
    """

    nats: np.ndarray
    n_scored: np.ndarray

    def posterior(self, log_prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Apply Bayes' rule: log p(d | text) [N, D], and the mixture's log p(text) = log Σ_d p(d) p(text | θ_d) [N].

        Args:
            log_prior: log p(d), [D] nats.
        """
        joint = self.nats + log_prior
        evidence = np.logaddexp.reduce(joint, axis=1)
        return joint - evidence[:, None], evidence


def log_prior(model: HierarchicalLoRA, prior: str) -> np.ndarray:
    """Return log p(d), [D] nats.

    Args:
        prior: uniform | documents, in proportion to the tasks' numbers of training documents.
    """
    weights = model.task_documents.cpu().numpy().astype(np.float64)
    if prior == "uniform":
        weights = np.ones_like(weights)
    return np.log(weights / weights.sum())


@torch.no_grad()
def likelihoods(
    restored: Restored, texts: Sequence[str], batch_size: int, progress: Progress = lambda steps, what: steps
) -> Likelihoods:
    """Score every document under every task's θ_d, with that task's prompt.

    A row of a batch is a document under a task. Each text is cut to fit behind the longest prompt of all tasks, so
    that every task explains the same tokens.

    Args:
        texts: N documents.
        batch_size: rows in a forward.

    Raises:
        UserError: the longest prompt leaves no room within data.max_tokens.
    """
    model, tokens = restored.model, restored.tokens
    names = model.adapters.task_names
    before = [np.array(tokens.before(name), dtype=np.int32) for name in names]
    room = tokens.max_tokens - max(map(len, before))
    if room < 2:
        raise UserError(f"data.max_tokens={tokens.max_tokens}: the longest prompt leaves no room for a text")
    bare = replace(tokens, max_tokens=room, prompt=None, prepend_bos=False)
    encoded, _ = bare.encode(pd.DataFrame({"task": "", "text": list(texts)}, dtype=str))
    lengths = np.array([len(e.ids) for e in encoded], dtype=np.int64)
    scored = lengths if min(map(len, before)) else np.maximum(lengths - 1, 0)
    nats = np.zeros((len(encoded), len(names)))
    order = np.argsort(lengths, kind="stable")
    order = order[scored[order] > 0]
    n_pairs = len(order) * len(names)
    for start in progress(range(0, n_pairs, batch_size), "tasks × documents"):
        document, task = np.divmod(np.arange(start, min(start + batch_size, n_pairs)), len(names))
        document = order[document]
        rows = [
            Encoded(np.concatenate([before[d], encoded[i].ids]), len(before[d]))
            for i, d in zip(document, task, strict=True)
        ]
        batch = Documents(rows, task.tolist(), tokens.pad_id)[list(range(len(rows))), 1]
        nll = model.nll(to_device(batch, model.device))
        nats[document, task] = -nll.double().cpu().numpy()
    return Likelihoods(nats, scored)


def measure_accuracy(best: Iterable[str], truth: Iterable[str], n_tasks: int) -> dict[str, float]:
    """Measure how often the likeliest task is the true one.

    Args:
        best, truth: of N ≥ 1 documents.
        n_tasks: D.

    Returns:
        n, accuracy, its 95 % Wilson interval low and high, macro_accuracy (mean over the true tasks), and what
        guessing would reach: chance, 1 / D, and majority, the share of the commonest true task.
    """
    table = pd.DataFrame({"truth": list(truth), "right": [b == t for b, t in zip(best, truth, strict=True)]})
    low, high = wilson_interval(int(table["right"].sum()), len(table))
    return {
        "n": len(table),
        "accuracy": table["right"].mean(),
        "low": low,
        "high": high,
        "macro_accuracy": table.groupby("truth")["right"].mean().mean(),
        "chance": 1 / n_tasks,
        "majority": table["truth"].value_counts(normalize=True).max(),
    }


def wilson_interval(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, 95 % by default."""
    p = successes / n
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return float(max(0.0, low)), float(min(1.0, high))
