"""Score new documents under a run's models: perplexities, and log p(text | θ_d) for p(d | text) ∝ p(d) p(text | θ_d)."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest

from bora.bayes.model import Under
from bora.errors import require_count
from bora.model.likelihood import n_scored
from bora.train.authorship import Likelihoods, calibration_error, log_prior, score_tasks
from bora.train.perplexity import TaskPerplexity
from bora.use.restore import Restored

# Column → the model whose perplexity it has.
MODELS: dict[str, Under] = {"perplexity": "task", "mean_model_perplexity": "mean", "base_model_perplexity": "base"}


@torch.no_grad()
def perplexities(restored: Restored, table: pd.DataFrame, batch_size: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """Compute the perplexity of documents under their own task's θ_d, under Θ and under the frozen backbone.

    Documents are scored as in training, with the same prompt and truncation; padding is never scored.

    Args:
        table: columns task, text and those that prompts use; every task is one of the run's.
        batch_size: documents in a forward pass.

    Returns:
        One row for each task with a scored token, in the run's order: task, n_documents, n_tokens (scored), nll (nats a
        token) and MODELS' columns; and MODELS' columns over all tokens, with `perplexity_macro`, the plain mean over
        those tasks, and `n_truncated`, the number of truncated documents.
    """
    require_count(batch_size=batch_size)
    model, names = restored.model, restored.model.adapters.task_names
    documents, truncation = restored.documents(table)
    metrics = {column: TaskPerplexity(len(names)) for column in MODELS}
    for _, batch in documents.by_length(batch_size, model.device, "perplexity"):
        for column, kind in MODELS.items():
            nll = model.nll(batch, kind)
            metrics[column].update(nll.cpu(), n_scored(batch["labels"]).cpu(), batch["task"].cpu())
    found = {column: metric.compute() for column, metric in metrics.items()}
    per_task = pd.DataFrame(
        {
            "task": names,
            "n_documents": table["task"].value_counts().reindex(names, fill_value=0).to_numpy(),
            "n_tokens": found["perplexity"]["task_tokens"].long().tolist(),
            "nll": found["perplexity"]["task_nll"].tolist(),
        }
        | {column: result["task_perplexity"].tolist() for column, result in found.items()}
    )
    per_task = per_task[per_task["n_tokens"] > 0].reset_index(drop=True)
    overall = {column: result["perplexity"].item() for column, result in found.items()}
    overall |= {"perplexity_macro": per_task["perplexity"].mean(), "n_truncated": truncation.documents}
    return per_task, overall


def likeliest(
    names: Sequence[str] | np.ndarray, posterior: np.ndarray, scored: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the likeliest name of each text and its probability; '' and NaN for a text without a token to score.

    Args:
        posterior: p(name | text), [N, D].
        scored: [N] whether a text has such a token.
    """
    best = np.array(names, dtype=object)[posterior.argmax(axis=1)]
    return np.where(scored, best, ""), np.where(scored, posterior.max(axis=1), np.nan)


def guess_tasks(restored: Restored, table: pd.DataFrame, prior: str, batch_size: int) -> pd.DataFrame:
    """Find the likeliest task of each text in a table with the columns text and those that prompts use.

    Returns:
        One row for each text: best, posterior, see `likeliest`; and a column for each task with p(d | text).
    """
    names = restored.model.adapters.task_names
    scores = score_tasks(restored.model, restored.tokens, table, batch_size)
    scored, prior_nats = scores.n_scored > 0, log_prior(restored.model.task_documents.cpu().numpy(), prior)
    posterior = np.exp(scores.posterior(prior_nats, restored.temperature)[0])
    best, probability = likeliest(names, posterior, scored)
    each = pd.DataFrame(np.where(scored[:, None], posterior, np.nan), columns=pd.Index(names))
    return pd.concat([pd.DataFrame({"best": best, "posterior": probability}), each], axis=1)


def measure_accuracy(best: Iterable[str], truth: Iterable[str], n_tasks: int) -> dict[str, float]:
    """Measure how often the likeliest task is the true one.

    Args:
        best, truth: the likeliest and the true task of N ≥ 1 documents.
        n_tasks: D.

    Returns:
        n, accuracy, its 95 % Wilson interval low and high, macro_accuracy (mean over the true tasks), and the
        accuracy of guessing: chance, 1 / D, and majority, the share of the commonest true task.
    """
    table = pd.DataFrame({"truth": list(truth), "right": [b == t for b, t in zip(best, truth, strict=True)]})
    low, high = binomtest(int(table["right"].sum()), len(table)).proportion_ci(method="wilson")
    return {
        "n": len(table),
        "accuracy": table["right"].mean(),
        "low": low,
        "high": high,
        "macro_accuracy": table.groupby("truth")["right"].mean().mean(),
        "chance": 1 / n_tasks,
        "majority": table["truth"].value_counts(normalize=True).max(),
    }


def measure_sureness(
    nats: np.ndarray, truth: np.ndarray, log_prior: np.ndarray, temperature: float
) -> dict[str, float]:
    """Compare how sure the posterior is with how often it is right.

    Args:
        nats: log p(text | θ_d), [N, D], N ≥ 1.
        truth: [N] the index of each document's task.
        log_prior: log p(d), [D] nats.
        temperature: T.

    Returns:
        log_loss, the mean of −log p(true task | text) in nats, and calibration_error, see
        `bora.train.authorship.calibration_error`, with T; log_loss_at_1 and calibration_error_at_1, by Bayes' rule
        without T; and guessing_log_loss, the mean of −log p(true task), which is log D for a uniform prior.
    """
    found = {"guessing_log_loss": float(-log_prior[truth].mean())}
    for suffix, value in (("", temperature), ("_at_1", 1.0)):
        log_posterior, _ = Likelihoods(nats, np.ones(len(nats))).posterior(log_prior, value)
        right = log_posterior.argmax(axis=1) == truth
        found[f"log_loss{suffix}"] = float(-log_posterior[np.arange(len(nats)), truth].mean())
        found[f"calibration_error{suffix}"] = calibration_error(np.exp(log_posterior.max(axis=1)), right)
    return found
