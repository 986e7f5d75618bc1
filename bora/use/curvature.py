"""Find τ for inference from a finished run: from documents' gradients at θ_d, with their own tokens and with drawn ones.

Tokens drawn from the model's prediction at each position, given the document's real tokens before it, yield the Fisher
information (Kunstner et al. 2019, https://arxiv.org/abs/1905.12558): the curvature of the NLL without the network's
second derivatives, which is never negative. Gradients of a document's real tokens are correlated, so they would count
what a task shares as curvature.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bora.bayes.adapters import Adapters
from bora.bayes.marginal_likelihood import TAUS, Curvature, bin_parameters, choose_tau, evidence_slopes, profile
from bora.data.batches import by_length
from bora.data.columns import level_cells
from bora.lib.console import tell
from bora.model.backbone import Backbone
from bora.model.batch import Batch, Places, to_device
from bora.model.likelihood import chunk_elements
from bora.use.restore import Restored

MAX_TASKS = 128  # tasks whose gradients are in memory together
MAX_SAMPLED = 256  # documents whose gradients with drawn tokens are compared
SKETCH = 2**15  # numbers to which gradients are folded for that: inner products are off by 1/181 of the norms' product


class GroupCurvature(NamedTuple):
    """One group of parameters; see `bora.bayes.marginal_likelihood.evidence_slopes`.

    Attributes:
        name: A or B.
        squares: [D, K].
        dispersion: φ.
    """

    name: str
    curvature: Curvature
    squares: Tensor
    dispersion: float


class Gradients(NamedTuple):
    """Sums over documents; P parameters of θ, D tasks, G groups of parameters, S documents with drawn tokens.

    Attributes:
        by_task: [D, P] gradient of the NLL of all of a task's documents.
        norms: [D, G] Σ_n ‖g_n‖² of each group of parameters.
        tokens: [D] number of scored tokens.
        documents: [D] number of documents.
        squares: [P] Σ g̃_n², with drawn tokens.
        folded: [S, G, SKETCH] g̃_n, folded so that inner products are nearly preserved (CountSketch).
        n_drawn: scored tokens of the S documents.
    """

    by_task: Tensor
    norms: Tensor
    tokens: Tensor
    documents: Tensor
    squares: Tensor
    folded: Tensor
    n_drawn: float


def find_tau(restored: Restored, table: pd.DataFrame, batch_size: int = 16) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Infer τ from a run's deviations and the gradients of its training documents; see `infer_tau`.

    Args:
        table: training documents, columns task, text and those that prompts use. At most MAX_TASKS of its
            tasks, drawn at random, are used.
        batch_size: documents in a backward pass.
    """
    names = table["task"].drop_duplicates()
    table = table[table["task"].isin(names.sample(min(MAX_TASKS, len(names)), random_state=0))]
    tell(f"gradients of {len(table):,} training documents of {table['task'].nunique():,} tasks at their θ")
    return infer_tau(*measure_curvature(restored, table, batch_size))


def infer_tau(tokens: Tensor, groups: Sequence[GroupCurvature]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Find the τ of highest evidence, for each group of parameters and for all together.

    Args:
        tokens: [D] T_d, the scored tokens of each task.

    Returns:
        One row for each group: group, dispersion, tau with its 95 % interval over tasks, tau_low and tau_high, by the
        diagonal, and the same by the eigenvalues, which are lower: lower_tau, lower_tau_low, lower_tau_high. And the
        diagonal's evidence at a range of τ minus its maximum, nats: group, tau, evidence.
    """
    slopes = [evidence_slopes(group.curvature, tokens, group.squares, group.dispersion) for group in groups]
    together = [torch.stack(both).sum(dim=0) for both in zip(*slopes, strict=True)]
    rows, profiles = [], []
    named = [*((group.name, group.dispersion) for group in groups), ("all", np.nan)]
    for (name, dispersion), (diagonal, low_rank) in zip(named, [*slopes, together], strict=True):
        row: dict[str, Any] = {"group": name, "dispersion": dispersion}
        for key, chosen in (("tau", choose_tau(diagonal)), ("lower_tau", choose_tau(low_rank))):
            row |= {key: chosen.tau, f"{key}_low": chosen.low, f"{key}_high": chosen.high}
        rows.append(row)
        profiles.append(pd.DataFrame({"group": name, "tau": TAUS.numpy(), "evidence": profile(diagonal).numpy()}))
    return pd.DataFrame(rows), pd.concat(profiles, ignore_index=True)


def measure_curvature(restored: Restored, table: pd.DataFrame, batch_size: int) -> tuple[Tensor, list[GroupCurvature]]:
    """Measure what the tasks' training documents say about τ, separately for the factors A and B.

    Args:
        table: training documents, columns task, text, those that prompts use and the levels'. It has all documents of
            its tasks, which are at most MAX_TASKS.
        batch_size: documents in a backward pass.

    Returns:
        T_d, [D] scored tokens of the tasks in the table; and the two groups.
    """
    adapters = restored.model.adapters
    is_b = torch.zeros(restored.model.n_parameters)
    for lora in adapters.layout.factors(is_b).values():
        lora.B.fill_(1)
    groups = [is_b == 0, is_b == 1]
    names = list(dict.fromkeys(table["task"]))
    sums = _sum_gradients(restored, table, names, groups, batch_size)
    deviations = torch.stack([_deviation(adapters, name) for name in names])
    n = sums.documents
    several, found = n > 1, []
    for g, (name, group) in enumerate(zip("AB", groups, strict=True)):
        gradients, own = sums.by_task[:, group], deviations[:, group]
        h = sums.squares[group] / sums.n_drawn
        bins, values, counts = bin_parameters(h)
        squares = torch.zeros(len(names), len(values), dtype=torch.float64)
        squares.index_add_(1, bins, (sums.tokens[:, None] * h * own - gradients).double().square())
        # Within tasks: Σ (g_n − ḡ_d)², corrected for bias, relative to the same for independent tokens.
        within = (sums.norms[:, g] - gradients.square().sum(dim=1) / n) * n / (n - 1)
        alone = sums.tokens[several].sum() * h.sum()
        folded = sums.folded[:, g].double()
        eigenvalues = torch.linalg.eigvalsh(folded @ folded.T / sums.n_drawn).clamp(min=0)
        curvature = Curvature(values, counts, eigenvalues)
        dispersion = float(within[several].sum() / alone) if alone > 0 else 1.0  # unknown if each task has one document
        found.append(GroupCurvature(name, curvature, squares, dispersion))
    return sums.tokens.double(), found


def _deviation(adapters: Adapters, task: str) -> Tensor:
    """Return δ_d, [P], on the CPU, without the deviations of the levels' units."""
    d = adapters.task_names.index(task)
    row = adapters.deviations(slice(d, d + 1))[0] if adapters.levels is None else adapters.stored[d]  # type: ignore[index]
    return row.detach().float().cpu()


def _sum_gradients(
    restored: Restored, table: pd.DataFrame, names: list[str], groups: list[Tensor], batch_size: int
) -> Gradients:
    """Sum the gradients of D tasks' documents, each at its task's θ; a group of parameters is a mask, [P]."""
    model, n_parameters = restored.model, restored.model.n_parameters
    levels, n_tasks = model.adapters.levels, len(model.adapters.task_names)
    units = None if levels is None else levels.rows_of_cells(level_cells(table, levels.columns), n_tasks)
    documents, _ = restored.documents(table, units)
    pieces: list[list[int]] = [[] for _ in range(len(table))]
    for i, piece in enumerate(documents.documents):
        pieces[piece.document].append(i)
    place = torch.as_tensor(pd.Index(names).get_indexer(pd.Index(table["task"])))
    scored = torch.tensor([float(sum(documents.documents[i].n_scored for i in own)) for own in pieces])
    rng, generator = np.random.default_rng(0), torch.Generator(model.device).manual_seed(0)
    drawn = torch.as_tensor(rng.permutation(len(table))[:MAX_SAMPLED].copy())
    row_of = torch.full((len(table),), -1).index_copy(0, drawn, torch.arange(len(drawn)))
    folds = [torch.as_tensor(rng.integers(SKETCH, size=int(group.sum()))) for group in groups]
    signs = torch.as_tensor(rng.choice([-1.0, 1.0], size=n_parameters)).float()
    by_task, norms = torch.zeros(len(names), n_parameters), torch.zeros(len(names), len(groups))
    squares, folded = torch.zeros(n_parameters), torch.zeros(len(drawn), len(groups), SKETCH)
    lengths = [sum(len(documents.documents[i].ids) for i in own) for own in pieces]
    for some in by_length(lengths, batch_size, "gradients"):
        whose = torch.tensor([k for k, i in enumerate(some) for _ in pieces[i]])
        batch = to_device(documents[[piece for i in some for piece in pieces[i]], 1], model.device)
        theta = model.adapters.rows(Places(batch["present"], batch["place"]), torch.float32)[0].detach()
        theta = theta.expand(len(whose), -1).requires_grad_()  # at τ = ∞ all share one
        gradients = _gradients(model.backbone, batch, theta, whose)
        by_task.index_add_(0, place[some], gradients)
        norms.index_add_(0, place[some], torch.stack([gradients[:, g].square().sum(dim=1) for g in groups], dim=1))
        if (row_of[some] >= 0).any():
            batch["labels"] = draw_labels(model.backbone, batch, theta, generator)
            gradients = _gradients(model.backbone, batch, theta, whose)[row_of[some] >= 0]
            squares += gradients.square().sum(dim=0)
            for g, (group, fold) in enumerate(zip(groups, folds, strict=True)):
                own = torch.zeros(len(gradients), SKETCH).index_add_(1, fold, (gradients * signs)[:, group])
                folded[row_of[some][row_of[some] >= 0], g] = own
    tokens = torch.zeros(len(names)).index_add_(0, place, scored)
    n_documents = torch.bincount(place, minlength=len(names)).float()
    return Gradients(by_task, norms, tokens, n_documents, squares, folded, float(scored[drawn].sum()))


def _gradients(backbone: Backbone, batch: Batch, theta: Tensor, whose: Tensor) -> Tensor:
    """Compute the gradient of each document's NLL, [M, P] float32 on the CPU.

    Args:
        theta: [R, P] θ of each row.
        whose: [R] the document of each row, 0 ≤ m < M.
    """
    (gradient,) = torch.autograd.grad(backbone.nll(batch, theta).sum(), theta)  # a row's NLL depends on its own θ only
    return gradient.new_zeros(int(whose.max()) + 1, theta.shape[1]).index_add(0, whose.to(theta.device), gradient).cpu()


@torch.no_grad()
def draw_labels(backbone: Backbone, batch: Batch, theta: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a label for each scored position from the model's prediction there; return [R, T], other labels unchanged.

    `theta` is [R, P], one θ for each row; `generator` is on the model's device.
    """
    head, places = backbone.head, batch["scored"]
    with backbone.routed(theta):
        hidden = backbone.hidden(batch["input_ids"])
    before = (
        hidden.flatten(0, 1).index_select(0, places - 1).split(chunk_elements(hidden.device) // len(head.weight) + 1)
    )
    drawn = [head.logits(h).float().softmax(dim=1).multinomial(1, generator=generator)[:, 0] for h in before]
    return batch["labels"].flatten().index_copy(0, places, torch.cat(drawn)).view_as(batch["labels"])
