"""Map the tasks: principal components of θ_d − Θ, and how much of its variance a column explains."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from bora.bayes.adapters import read_saved
from bora.data.read import read_column
from bora.errors import UserError
from bora.runs.archive import Run
from bora.runs.checkpoints import load_checkpoint
from bora.runs.directory import RunDirectory

PERMUTATIONS = 2_000


@dataclass(frozen=True)
class TaskMap:
    """D tasks in a plane.

    Attributes:
        tau, tasks: of the run.
        gram: [D, D] inner products of the centred θ_d − Θ.
        coordinates: [D, 2] in parameter units.
        shares: [2] of the variance of θ_d − Θ over tasks, along each of the two axes.
        column, groups: the table's column and each task's value in it; None without one.
        explained: share of the whole variance (all dimensions) between the groups.
        by_chance: the share that the same groups explain on average when dealt out at random.
        p_value: how often chance explains as much.
    """

    tau: float
    tasks: list[str]
    gram: np.ndarray
    coordinates: np.ndarray
    shares: np.ndarray
    column: str | None = None
    groups: pd.Series | None = None
    explained: float = math.nan
    by_chance: float = math.nan
    p_value: float = math.nan


def build_task_map(run: Run) -> TaskMap:
    """Place a run's tasks by its best checkpoint.

    Raises:
        UserError: no checkpoint, fewer than three tasks, or tasks that do not differ.
    """
    if not RunDirectory(run.folder).best.is_file():
        raise UserError("the map of tasks needs checkpoints/best.ckpt, which an archive does not hold")
    checkpoint = load_checkpoint(RunDirectory(run.folder).best)
    known = checkpoint["hyper_parameters"]
    tasks = known["task_names"]
    if len(tasks) < 3:
        raise UserError(f"the map of tasks needs three tasks or more; {run.folder} has {len(tasks)}")
    deviations = read_saved(checkpoint["state_dict"], known["layers"]).deviations  # None at τ = ∞
    theta = torch.zeros(len(tasks), 1) if deviations is None else deviations.double()
    centred = theta - theta.mean(dim=0)
    # P may be millions, D is not: components by way of the [D, D] products.
    gram = (centred @ centred.mT).numpy()
    values, vectors = np.linalg.eigh(gram)
    total = np.trace(gram)
    if total <= 0:
        raise UserError(f"the tasks of {run.folder} do not differ from Θ, so there is no map of them")
    coordinates = vectors[:, [-1, -2]] * np.sqrt(np.maximum(values[[-1, -2]], 0))
    # An eigenvector's sign is arbitrary; the outermost task is put on the right and above.
    coordinates *= np.sign(coordinates[np.abs(coordinates).argmax(axis=0), [0, 1]])
    return TaskMap(run.tau, tasks, gram, coordinates, values[[-1, -2]] / total)


def group_by(projection: TaskMap, run: Run, column: str) -> TaskMap:
    """Group the tasks by a column of the run's table (party, gender, play), and test how much it explains.

    Raises:
        UserError: no such column.
    """
    groups = attribute(run, column).reindex(projection.tasks)
    explained, by_chance, p_value = explained_variance(projection.gram, groups)
    return replace(projection, column=column, groups=groups, explained=explained, by_chance=by_chance, p_value=p_value)


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


def attribute(run: Run, column: str) -> pd.Series:
    """Find each task's commonest value of a column of the table that the run was read from.

    Raises:
        UserError: the corpus is no table, the file has moved, or it has no such column.
    """
    documents = RunDirectory(run.folder).documents()
    values = read_column(RunDirectory(run.folder).config().data, column, documents["row"], "--color-by=")
    commonest = pd.Series(values, index=documents["task"]).groupby(level=0).agg(lambda v: v.value_counts().index[0])
    return commonest.replace("", "(none)")
