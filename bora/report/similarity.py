"""Find which tasks deviate from Θ in the same direction, and how much of that a column explains."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from bora.bayes.levels import NONE
from bora.bayes.saved import read_saved
from bora.data.read import read_column
from bora.errors import UserError
from bora.runs.archive import RunRecord
from bora.runs.checkpoints import load_checkpoint
from bora.runs.corpus import split_documents
from bora.runs.directory import RunDirectory

PERMUTATIONS = 2_000
MAX_OPTIMAL = 300  # tasks for which to find the tree's best order, which takes time cubic in their number


@dataclass(frozen=True)
class Similarity:
    """D tasks compared.

    Attributes:
        tau, tasks: the run's.
        gram: [D, D] inner products of the θ_d − Θ, after subtracting their mean.
        cosines: [D, D] cosines of the same.
        order: [D] tasks, similar ones next to each other: the leaves of a tree by average linkage.
        column, groups: the table's column and each task's value in it; None without one.
        explained: share of the total variance that is between the groups.
        by_chance: the share that the same groups explain on average when assigned at random.
        p_value: how often chance explains as much.
    """

    tau: float
    tasks: list[str]
    gram: np.ndarray
    cosines: np.ndarray
    order: np.ndarray
    column: str | None = None
    groups: pd.Series | None = None
    explained: float = math.nan
    by_chance: float = math.nan
    p_value: float = math.nan

    @property
    def names(self) -> list[str]:
        """All names in its figure: tasks and groups."""
        return [*self.tasks, *(() if self.groups is None else self.groups)]


def compare_tasks(run: RunRecord) -> Similarity:
    """Compare the tasks in a run's best checkpoint; refuse fewer than three tasks, and tasks that do not differ."""
    if not RunDirectory(run.folder).best.is_file():
        raise UserError("the similarity of tasks needs checkpoints/best.ckpt, which an archive does not hold")
    checkpoint = load_checkpoint(RunDirectory(run.folder).best)
    known = checkpoint["hyper_parameters"]
    tasks = known["task_names"]
    if len(tasks) < 3:
        raise UserError(f"the similarity of tasks needs three tasks or more; {run.folder} has {len(tasks)}")
    deviations = read_saved(checkpoint["state_dict"], known["layers"]).deviations  # None at τ = ∞
    # Only the tasks' rows; the units of levels above follow them.
    theta = torch.zeros(len(tasks), 1) if deviations is None else deviations[: len(tasks)].double()
    centred = theta - theta.mean(dim=0)
    gram = (centred @ centred.mT).numpy()
    length = np.sqrt(np.diag(gram))
    if not length.all():
        raise UserError(f"not every task of {run.folder} differs from the others, so they cannot be compared")
    cosines = np.clip(gram / np.outer(length, length), -1, 1)
    apart = squareform(1 - cosines, checks=False)
    tree = hierarchy.linkage(apart, "average", optimal_ordering=len(tasks) <= MAX_OPTIMAL)
    return Similarity(run.tau, tasks, gram, cosines, hierarchy.leaves_list(tree))


def group_by(found: Similarity, run: RunRecord, column: str) -> Similarity:
    """Group tasks by their commonest value in a column of the run's table (party, play), and test what it explains."""
    directory = RunDirectory(run.folder)
    documents = split_documents(directory, "train", "validation")
    values = read_column(directory.config().data, column, documents.index, "--color-by=")
    by_task = pd.Series(values, index=documents["task"]).groupby(level=0)
    groups = by_task.agg(lambda cells: cells.value_counts().index[0]).replace("", NONE).reindex(found.tasks)
    explained, by_chance, p_value = explained_variance(found.gram, groups)
    return replace(found, column=column, groups=groups, explained=explained, by_chance=by_chance, p_value=p_value)


def explained_variance(gram: np.ndarray, groups: pd.Series) -> tuple[float, float, float]:
    """Compute the share of the variance between groups, its mean under permutation, and the p value (seed 0).

    Args:
        gram: [D, D] inner products of the centred tasks.
        groups: [D] their groups.
    """
    codes = groups.astype(str).factorize()[0]
    member = np.eye(codes.max() + 1)[codes]
    projector = member / np.sqrt(member.sum(axis=0))

    def share(rows: np.ndarray) -> float:
        return float(np.einsum("ik,ij,jk->", projector[rows], gram, projector[rows], optimize=True) / np.trace(gram))

    rng = np.random.default_rng(0)
    mine = share(np.arange(len(codes)))
    chance = np.array([share(rng.permutation(len(codes))) for _ in range(PERMUTATIONS)])
    p_value = (1 + (chance >= mine - 1e-12).sum()) / (1 + PERMUTATIONS)
    return mine, float(chance.mean()), float(p_value)
