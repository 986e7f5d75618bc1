"""Find which columns of a table matter to a model, before any of them is modelled: from documents' gradients at Θ.

If documents that share a value of a column pull Θ the same way, the column has variance to model. The gradient of
document n, g_n = ∇NLL_n(Θ) / √tokens, so that long and short ones are equally noisy, is compared with every other. Pairs
are averaged (Haseman–Elston: the moments of a mixed model with the kernel g_n · g_m)::

    task       mean over pairs of one task               − mean over pairs of two tasks
    column c   mean over pairs of two tasks with one c   − mean over pairs of two tasks with two c

and divided by the mean of ‖g_n‖² minus the mean over pairs that share nothing, which makes them shares of variance. A
column is compared only between tasks, so that party is not credited with the variance of its speakers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import t

from bora.errors import UserError
from bora.lib.console import tell
from bora.model.likelihood import n_scored
from bora.use.restore import Restored

SKETCH = 2**14  # numbers to which gradients are folded: inner products are off by 1/128 of the norms' product, randomly
PERMUTATIONS = 200
MAX_DOCUMENTS = 1000  # all pairs of them are compared


def find_shares(
    restored: Restored,
    table: pd.DataFrame,
    read: Callable[[str, pd.Index], Sequence[str]],
    by: Sequence[str],
    max_documents: int = MAX_DOCUMENTS,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Find which columns explain how documents' gradients at Θ differ.

    Args:
        table: validation documents, columns task, text and those that prompts use.
        read: returns a column's cells in some of the table's rows.
        by: the columns to compare.
        max_documents: number of documents to draw at random if there are more.
        batch_size: documents in a backward pass.

    Returns:
        One row for the task and for each column, with Share's attributes, the largest share first.
    """
    table = table.sample(min(max_documents, len(table)), random_state=0).sort_index()
    columns = {name: read(name, table.index) for name in by}
    tell(f"gradients of {len(table):,} validation documents of {table['task'].nunique():,} tasks at Θ")
    similarity = gradient_similarities(restored, table, batch_size)
    return pd.DataFrame(map(vars, variance_shares(similarity, table["task"].tolist(), columns)))


def gradient_similarities(restored: Restored, table: pd.DataFrame, batch_size: int) -> np.ndarray:
    """Compute g_n · g_m of documents at Θ, [N, N]; documents without a scored token have zeros.

    See `find_shares` for the arguments.
    """
    model, (documents, _) = restored.model, restored.documents(table)
    generator = torch.Generator().manual_seed(0)
    place = torch.randint(SKETCH, (model.n_parameters,), generator=generator).to(model.device)
    sign = (2 * torch.randint(2, (model.n_parameters,), generator=generator) - 1).float().to(model.device)
    folded, tokens = torch.zeros(len(table), SKETCH), torch.zeros(len(table))
    for some, batch in documents.by_length(batch_size, model.device, "gradients"):
        theta = model.adapters.mean.detach().expand(len(some), -1).clone().requires_grad_()
        nll = model.backbone.nll(batch, theta.to(model.backbone.dtype))
        (gradient,) = torch.autograd.grad(nll.sum(), theta)  # a row of theta affects only its own document's NLL
        sketch = torch.zeros(len(some), SKETCH, device=model.device).index_add_(1, place, gradient * sign)
        whose = torch.tensor([documents.documents[i].document for i in some])  # a document's pieces are summed
        folded.index_add_(0, whose, sketch.cpu())
        tokens.index_add_(0, whose, n_scored(batch["labels"]).cpu().float())
    folded /= tokens.clamp(min=1).sqrt()[:, None]
    return (folded @ folded.T).double().numpy()


@dataclass(frozen=True)
class Share:
    """A column's share of the variance of the documents' gradients.

    Attributes:
        column: the column's name, or task.
        units: number of distinct values.
        share: its share of the variance; by chance it may be below 0.
        low, high: 95 % interval of the share, by a jackknife over tasks.
        p_value: p-value of no variance, by permutation.
    """

    column: str
    units: int
    share: float
    low: float
    high: float
    p_value: float


def variance_shares(similarity: np.ndarray, tasks: Sequence[str], columns: Mapping[str, Sequence[str]]) -> list[Share]:
    """Compute the share of the task and of each column, the largest first.

    A column with one value in each task is permuted over tasks, any other over the documents of each task.

    Args:
        similarity: [N, N] similarity of each pair of documents.
        tasks: [N] the documents' tasks.
        columns: name → [N] the documents' values.

    Raises:
        UserError: there are fewer than 3 tasks, no task has two documents, or a column has one value, or none that two
            tasks share.
    """
    task = pd.factorize(pd.Series(tasks))[0]
    if task.max() < 2:
        raise UserError("variance between tasks needs at least 3 tasks")
    same_task = task[:, None] == task
    apart = ~np.eye(len(task), dtype=bool)
    if not (same_task & apart).any():
        raise UserError("no task has two documents here, so what documents of a task share cannot be measured")
    found = [_share("task", task, task, similarity, apart, np.zeros_like(task))]
    for name, values in columns.items():
        code = pd.factorize(pd.Series(values))[0]
        shared = (code[:, None] == code) & ~same_task
        if not shared.any() or not (~shared & ~same_task).any():
            why = "only one value" if code.max() == 0 else "no value that two tasks share"
            raise UserError(
                f"the column {name} has {why} in these documents, so its effect cannot be separated from the tasks'"
            )
        by_task = pd.Series(code).groupby(task).nunique().max() == 1
        found.append(_share(name, code, task, similarity, ~same_task, None if by_task else task))
    return sorted(found, key=lambda share: -share.share)


def _share(
    name: str, code: np.ndarray, task: np.ndarray, similarity: np.ndarray, pairs: np.ndarray, strata: np.ndarray | None
) -> Share:
    """Compute one share.

    Args:
        code: [N] each document's unit.
        pairs: [N, N] the pairs to compare.
        strata: [N] groups within which the documents' units are permuted; None to permute whole tasks' units.
    """
    counted = np.where(pairs, similarity, 0.0)
    everything, n_pairs = counted.sum(), pairs.sum()

    def contrast(code: np.ndarray) -> float:
        same = (code[:, None] == code) & pairs
        within, n = counted[same].sum(), same.sum()
        return within / n - (everything - within) / (n_pairs - n)

    mine = contrast(code)
    rng = np.random.default_rng(0)
    chance = np.array([contrast(_permute(code, task, strata, rng)) for _ in range(PERMUTATIONS)])
    p_value = (1 + (chance >= mine).sum()) / (1 + PERMUTATIONS)
    same, other = ((code[:, None] == code) & pairs), ((code[:, None] != code) & pairs)
    total = np.diag(similarity).mean() - similarity[other].mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        within, between = (
            _without_each_task(np.where(which, similarity, 0.0), task) / _without_each_task(1.0 * which, task)
            for which in (same, other)
        )
    jackknife = (within - between)[np.isfinite(within - between)] / total
    n = len(jackknife)
    half = t.ppf(0.975, n - 1) * np.sqrt((n - 1) * jackknife.var()) if n > 1 else np.nan
    share = float(mine / total)
    return Share(name, int(code.max()) + 1, share, float(share - half), float(share + half), float(p_value))


def _without_each_task(values: np.ndarray, task: np.ndarray) -> np.ndarray:
    """Sum a symmetric matrix over the pairs that remain without each task, [D]."""
    n = task.max() + 1
    by_task = np.zeros((n, len(task)))
    np.add.at(by_task, task, values)
    blocks = np.array([by_task[d, task == d].sum() for d in range(n)])
    return values.sum() - 2 * by_task.sum(axis=1) + blocks


def _permute(code: np.ndarray, task: np.ndarray, strata: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    if strata is None:  # permute the tasks' units
        first = np.array([code[task == d][0] for d in range(task.max() + 1)])
        return rng.permutation(first)[task]
    shuffled = code.copy()
    for stratum in np.unique(strata):
        places = np.flatnonzero(strata == stratum)
        shuffled[places] = code[rng.permutation(places)]
    return shuffled
