"""Which task wrote a text: p(d | text) ∝ p(d) p(text | θ_d)^(1/T).

At T = 1 this is Bayes' rule. θ_d is a single point, fitted to few texts, and a text's tokens are less independent than
the product over them assumes, so Bayes' rule is overconfident, or at a large τ underconfident. One number, the
temperature T, corrects its confidence and nothing else (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from bora.bayes.model import HierarchicalLoRA
from bora.data.batches import Documents
from bora.data.pieces import Encoded
from bora.data.tokens import Tokens
from bora.errors import UserError, require_count
from bora.lib.console import progress
from bora.model.batch import to_device

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.1, 1000.0
N_BINS = 10  # bins of the calibration error
PRIORS = "uniform", "documents"


@dataclass(frozen=True)
class Likelihoods:
    """log p(text | θ_d) of N documents under D tasks.

    Attributes:
        nats: [N, D] float64; 0 for a document without scored tokens.
        n_scored: [N] scored tokens of each document, the same for every task.
    """

    nats: np.ndarray
    n_scored: np.ndarray

    def posterior(self, log_prior: np.ndarray, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Compute log p(d | text) [N, D], and its normaliser, log Σ_d p(d) p(text | θ_d)^(1/T) [N].

        At T = 1 this is Bayes' rule, and the normaliser is the mixture's log p(text).

        Args:
            log_prior: log p(d), [D] nats.
            temperature: T > 0.
        """
        joint = self.nats / temperature + log_prior
        evidence = np.logaddexp.reduce(joint, axis=1)
        return joint - evidence[:, None], evidence


def log_prior(task_documents: np.ndarray, prior: str) -> np.ndarray:
    """Return log p(d), [D] nats.

    Args:
        task_documents: [D] N_d, training documents of each task.
        prior: uniform | documents, in proportion to N_d.

    Raises:
        UserError: `prior` is neither.
    """
    if prior not in PRIORS:
        raise UserError(f"prior={prior!r}: give {' or '.join(PRIORS)}")
    weights = task_documents.astype(np.float64) if prior == "documents" else np.ones(len(task_documents))
    return np.log(weights / weights.sum())


@torch.no_grad()
def score_tasks(model: HierarchicalLoRA, tokens: Tokens, table: pd.DataFrame, batch_size: int) -> Likelihoods:
    """Score every document under every task's θ_d, with that task's prompt.

    Each row of a batch is a document, or a piece of one, under one task. If the prompt names the task, each text is cut
    to fit after the longest of all tasks' prompts, so that all tasks score the same tokens.

    Args:
        table: N documents, with the column text and those that their prompts need.
        batch_size: rows of each forward.

    Raises:
        UserError: see `Tokens.encode` and `Tokens.encode_under`.
    """
    require_count(batch_size=batch_size)
    names = model.adapters.task_names
    if tokens.names_task:
        encoded = tokens.encode_under(table.assign(task=names[0]), names)
    else:
        encoded, _ = tokens.encode(table.assign(task=""))
    pieces: list[list[Encoded]] = [[] for _ in range(len(table))]
    for piece in encoded:
        pieces[piece.document].append(piece)
    lengths = np.array([sum(len(p.ids) for p in own) for own in pieces], dtype=np.int64)
    scored = np.array([sum(p.n_scored for p in own) for own in pieces], dtype=np.int64)
    nats = np.zeros((len(table), len(names)))
    order = np.argsort(lengths, kind="stable")
    order = order[scored[order] > 0]
    n_pairs = len(order) * len(names)
    for start in progress(range(0, n_pairs, batch_size), "tasks × documents"):
        document, task = np.divmod(np.arange(start, min(start + batch_size, n_pairs)), len(names))
        document = order[document]
        if tokens.names_task:
            rows = tokens.encode_under(table.iloc[document].assign(task=[names[d] for d in task]), names)
            whose = np.array([row.document for row in rows])
        else:
            rows = [row for i in document for row in pieces[i]]
            whose = np.repeat(np.arange(len(document)), [len(pieces[i]) for i in document])
        for at in range(0, len(rows), batch_size):
            some = slice(at, at + batch_size)
            batch = Documents(rows[some], task[whose[some]].tolist())[list(range(len(rows[some]))), 1]
            nll = model.nll(to_device(batch, model.device)).double().cpu().numpy()
            np.subtract.at(nats, (document[whose[some]], task[whose[some]]), nll)
    return Likelihoods(nats, scored)


def fit_temperature(nats: np.ndarray, truth: np.ndarray) -> float:
    """Fit T by maximum likelihood: minimise the log loss of the posterior under a uniform prior.

    The log loss, log Σ_d exp(b ℓ_d) − b ℓ_truth, is convex in b = 1/T, and its slope is the mean of E[ℓ_d] − ℓ_truth
    under the posterior. Bisection finds where the slope is 0, between MIN_TEMPERATURE and MAX_TEMPERATURE.

    Args:
        nats: ℓ = log p(text | θ_d), [N, D], N ≥ 1.
        truth: [N] task of each document.

    Returns:
        T; 1 if every document's own task is its likeliest, since the likelihood then has no maximum.
    """
    nats = nats - nats[np.arange(len(nats)), truth][:, None]
    if nats.max() <= 0:
        return 1.0
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(100):
        middle = (low + high) / 2
        weights = np.exp(middle * (nats - nats.max(axis=1, keepdims=True)))
        slope = (weights * nats).sum(axis=1) / weights.sum(axis=1)
        low, high = (low, middle) if slope.mean() > 0 else (middle, high)
    return 2 / (low + high)


def calibration_error(probability: np.ndarray, right: np.ndarray) -> float:
    """Compute the expected calibration error.

    It is the mean over documents of the distance between their bin's accuracy and its mean probability.

    Args:
        probability: [N], N ≥ 1, of the likeliest task; sorted into N_BINS bins of equal width, (0, 0.1], (0.1, 0.2], ….
        right: [N] whether that is the document's task.
    """
    bins = np.clip(np.ceil(probability * N_BINS), 1, N_BINS).astype(int)
    gaps = np.bincount(bins, weights=right - probability)
    return float(np.abs(gaps).sum() / len(bins))
