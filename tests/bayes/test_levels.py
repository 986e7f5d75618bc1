"""Levels above the task: gradients against autograd, both ways of gathering, and a linear mixed model."""

import numpy as np
import pandas as pd
import pytest
import torch
from statsmodels.regression.mixed_linear_model import MixedLM

import bora.bayes.rows
from bora.bayes.levels import build_levels, describe_confounded, place_new
from bora.errors import UserError
from tests.conftest import hierarchical, random_factors, tiny_opt

TASKS = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
PARTY = ["left", "left", "left", "left", "left", "right", "right", "right", "right", "right"]
YEAR = ["1", "2", "1", "2", "3", "1", "", "3", "1", "2"]
TAUS = {"party": 30.0, "year": 7.0}
TAU = 11.0


def levels_of(*columns: str):
    values = {"party": PARTY, "year": YEAR}
    return build_levels({c: values[c] for c in columns}, TASKS, [True] * len(TASKS), [TAUS[c] for c in columns])


def batch_of(units: list[list[int]] | None, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 60, (len(TASKS), 7), generator=generator)
    labels = ids.clone()
    labels[:, 0] = -100
    labels[3, 4:] = -100
    batch = {"input_ids": ids, "labels": labels, "task": torch.tensor(TASKS), "batches": 1}
    return batch if units is None else batch | {"units": torch.tensor(units)}


def model_of(levels, **options):
    counts = np.bincount(TASKS).tolist()
    model = hierarchical(
        tiny_opt(dtype=torch.float64), list("abcd"), counts, 55, TAU, levels=levels, **options
    ).double()
    random_factors(model, std=0.1)
    return model


def one_nll(model, batch: dict, r: int, theta: torch.Tensor) -> torch.Tensor:
    """Return the NLL of document r, run alone under `theta`."""
    one = {key: batch[key][r : r + 1] for key in ("input_ids", "labels")}
    return model.backbone.nll(one | {"task": torch.tensor([0]), "batches": 1}, theta[None])[0]


def reference(model, batch, units: list[list[int]]) -> torch.Tensor:
    """Compute U/T document by document."""
    adapters, total = model.adapters, torch.zeros((), dtype=torch.float64)
    for r, task in enumerate(TASKS):
        theta = adapters.mean + adapters.stored[task] + sum(adapters.stored[u] for u in units[r])
        total = total + one_nll(model, batch, r, theta)
    taus = [TAU] * 4 + adapters.levels.row_taus()
    prior = sum(tau / 2 * adapters.stored[i].square().sum() for i, tau in enumerate(taus))
    return (total + prior) / 55


@pytest.mark.parametrize("columns", [("party",), ("party", "year")])
@pytest.mark.parametrize("estimator", ["by_document", "dense"])
@pytest.mark.parametrize("together", [False, True])
def test_objective_and_gradient_equal_a_loop_over_documents(columns, estimator, together, monkeypatch):
    monkeypatch.setattr(bora.bayes.rows, "together", lambda device: together)
    levels, units = levels_of(*columns)
    model, batch = model_of(levels, estimator=estimator), batch_of(units)
    loss = model.objective(batch).loss
    loss.backward()
    found = [model.adapters.mean.grad, model.adapters.stored.grad.to_dense()]
    model.zero_grad()
    expected = reference(model, batch, units)
    torch.testing.assert_close(loss, expected)
    of_mean, of_stored = torch.autograd.grad(expected, [model.adapters.mean, model.adapters.stored])
    torch.testing.assert_close(found[0], of_mean)
    torch.testing.assert_close(found[1], of_stored)


def test_units_are_cell_values_and_a_task_has_those_that_all_its_documents_share():
    levels, units = levels_of("party", "year")
    assert levels.units == [["left", "right"], ["1", "2", "3", "(none)"]]
    assert levels.documents == [5, 5, 4, 3, 2, 1]
    assert levels.of_task == [[0, -1], [0, -1], [1, -1], [1, -1]]
    assert units[6] == [4 + 1, 4 + 2 + 3]
    assert levels.rows_of_task(2, 4) == [5]
    assert levels.rows_of_cells({"year": YEAR, "party": PARTY}, n_tasks=4) == units
    assert levels.row_taus() == [30, 30, 7, 7, 7, 7]
    assert [line.split()[0] for line in describe_confounded(levels, TASKS, units)] == ["party", "year"]


def test_units_with_a_single_task_are_reported_even_if_a_task_has_several_units():
    parties = ["left", "left", "right", "right", "green", "blue", "left"]
    tasks = [0, 1, 0, 2, 3, 4, 1]  # task 0 changed parties; green and blue have one task each
    levels, rows = build_levels({"party": parties}, tasks, [True] * 7, [7.0])
    told = describe_confounded(levels, tasks, rows)
    assert told[0].startswith("party: 2 of 4 units have one task (green, blue)")
    assert not any("groups" in line for line in told)
    # Unit 1's only task also has documents in unit 2, so the two can be told apart.
    tasks = [0, 0, 1, 1]
    levels, rows = build_levels({"year": ["1", "2", "2", "2"]}, tasks, [True] * 4, [7.0])
    assert not any("have one task" in line for line in describe_confounded(levels, tasks, rows))


def test_an_empty_cell_of_a_new_task_is_the_unit_none():
    levels, _ = levels_of("year")
    new, _ = place_new(levels, {"year": ["", "1", "7"]}, [0, 1, 2])
    assert new.of_task == [[levels.units[0].index("(none)")], [levels.units[0].index("1")], [4]]
    unknown, _ = place_new(levels, {}, [0, 1, 2])
    assert unknown.of_task == [[4]] * 3


def test_units_of_another_run_are_matched_by_name():
    old, _ = build_levels({"party": ["left", "right", "left", "green"]}, [0, 1, 2, 3], [True] * 4, [5.0])
    new, _ = build_levels({"party": ["right", "blue", "left", "left"]}, [0, 1, 2, 3], [True] * 4, [5.0])
    theirs = hierarchical(tiny_opt(), list("abcd"), [1] * 4, 30, 9.0, levels=old)
    ours = hierarchical(tiny_opt(), list("dcba"), [1] * 4, 30, 9.0, levels=new)
    random_factors(theirs)
    checkpoint = {"hyper_parameters": theirs.hyperparameters, "state_dict": theirs.trained_state()}
    ours.start_from(checkpoint)
    names = theirs.adapters.names
    for row, name in enumerate(ours.adapters.names):
        expected = theirs.adapters.stored[names.index(name)] if name in names else torch.zeros(1)
        assert torch.equal(ours.adapters.stored[row], expected.expand_as(ours.adapters.stored[row]))
    torch.testing.assert_close(ours.adapters.theta(3), theirs.adapters.theta(0))  # task a, in the same party in both
    plain = hierarchical(tiny_opt(), list("abcd"), [1] * 4, 30, 9.0)
    with pytest.raises(UserError, match=r"data.levels=\['party'\], this one \[\]"):
        plain.start_from(checkpoint)


@pytest.mark.parametrize(("years", "groups"), [("1212343456", 2), ("1222334445", 1), ("1212343478", 3)])
def test_a_level_that_splits_the_tasks_into_unconnected_groups_is_reported(years, groups):
    tasks = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] if groups == 3 else TASKS
    levels, units = build_levels({"year": list(years)}, tasks, [True] * 10, [7.0])
    told = [line for line in describe_confounded(levels, tasks, units) if "groups" in line]
    assert (len(told), f"{groups} groups" in "".join(told)) == (groups > 1, groups > 1)


def test_a_tasks_theta_is_the_mean_plus_all_its_deviations():
    levels, units = levels_of("party", "year")
    model = model_of(levels)
    adapters = model.adapters
    torch.testing.assert_close(adapters.theta(2), adapters.mean + adapters.stored[2] + adapters.stored[5])
    # For new text only the task is known; for the run's own documents the year, too.
    known, unknown = batch_of(units), batch_of(None)
    nll = model.nll(unknown)
    for r, task in enumerate(TASKS):
        torch.testing.assert_close(nll[r], one_nll(model, unknown, r, adapters.theta(task)))
    assert not torch.allclose(model.nll(known), nll)


@pytest.mark.parametrize("years", ["crossed", "nested"])
def test_the_mode_equals_that_of_a_linear_mixed_model(years, monkeypatch):
    """For y = θ_n + noise the objective's gradient is 0 at the effects that statsmodels predicts."""
    rng = np.random.default_rng(2)
    table = pd.DataFrame({"speaker": np.repeat(np.arange(24), 5)})
    table["party"] = table["speaker"] // 4
    table["year"] = rng.integers(0, 7, len(table)) if years == "crossed" else table["party"] // 2
    columns = ["speaker", "party", "year"]
    sizes = {column: rng.normal(0, size, 24)[table[column]] for column, size in zip(columns, (2, 3, 4), strict=True)}
    table["y"] = 5 + sum(sizes.values()) + rng.normal(0, 1, len(table))
    fitted = MixedLM.from_formula(
        "y ~ 1", table, groups=np.ones(len(table)), vc_formula={column: f"0 + C({column})" for column in columns}
    ).fit()
    variances = dict(zip(fitted.model.exog_vc.names, fitted.vcomp, strict=True))
    assert min(variances.values()) > 0.01

    tasks = table["speaker"].tolist()
    values = {column: table[column].astype(str).tolist() for column in columns[1:]}
    taus = [1 / variances[column] for column in columns]
    levels, units = build_levels(values, tasks, [True] * len(tasks), taus[1:])
    names = [str(name) for name in range(24)]
    model = hierarchical(tiny_opt(dtype=torch.float64), names, [5] * 24, 1, taus[0], levels=levels).double()
    adapters, effects = model.adapters, fitted.random_effects[1]
    with torch.no_grad():
        adapters.mean[0] = fitted.fe_params["Intercept"]
        rows = [("speaker", name) for name in names] + levels.pairs
        adapters.stored[:, 0] = torch.tensor([effects[f"{column}[C({column})[{unit}]]"] for column, unit in rows])

    def gaussian(batch, theta, dropout):
        return (batch["y"] - theta[:, 0]).square() / (2 * fitted.scale)

    monkeypatch.setattr(model.backbone, "nll", gaussian)
    for half in np.array_split(rng.permutation(len(table)), 2):
        batch = {"task": tasks, "units": units, "labels": [[0, 0]] * len(tasks), "y": table["y"].tolist()}
        batch = {key: torch.tensor(np.array(value)[half]) for key, value in batch.items()} | {"batches": 2}
        (model.objective(batch).loss / 2).backward()
    assert adapters.mean.grad[0].abs() < 1e-6
    assert adapters.stored.grad.to_dense()[:, 0].abs().max() < 1e-6
    assert adapters.stored[:, 0].abs().min() > 1e-3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"a": ["x"] * 10}, "one value"),
        ({"a": [str(t) for t in TASKS]}, "a and the tasks divide the documents alike"),
        ({"a": PARTY, "b": [p.upper() for p in PARTY]}, "b and a divide the documents alike"),
    ],
)
def test_levels_that_cannot_be_told_apart_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        build_levels(values, TASKS, [True] * 10, [1.0] * len(values))
