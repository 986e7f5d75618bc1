"""One training step is U/T, and steps of accumulated batches are steps of a larger batch."""

import copy
import math
from itertools import product
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from bora.errors import UserError
from bora.train.module import HierarchicalLoRA
from tests.conftest import random_factors, tiny_data, tiny_opt

SIZES = {"a": 3, "b": 2}


def build(data, **options) -> HierarchicalLoRA:
    torch.manual_seed(0)
    tau = options.pop("tau", 5.0)
    return HierarchicalLoRA(tiny_opt(), list(SIZES), data.task_documents, data.n_tokens, tau, rank=2, **options)


@pytest.mark.parametrize("estimator", ["by_document", "dense"])
@pytest.mark.parametrize("parameterization", ["centered", "noncentered"])
@pytest.mark.parametrize(("batch_size", "window"), [(1, 1), (2, 1), (3, 1), (8, 1), (2, 2), (3, 2)])
def test_the_training_steps_of_an_epoch_average_to_u_over_t_and_its_gradient(
    estimator, parameterization, batch_size, window
):
    data = tiny_data({"a": 5, "b": 3}, batch_size)
    model = build(data, estimator=estimator, parameterization=parameterization).double()
    random_factors(model)
    data.trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=window, global_rank=0)
    parameters = list(model.adapters.parameters())
    batches = list(data.train_dataloader())
    assert len(batches) == window * math.ceil(8 / (batch_size * window))
    # Lightning divides each loss by the window, so that a step's is their mean, as is an epoch's of its steps'.
    objectives = [model.objective(batch) for batch in batches]
    total = sum(o.likelihood + o.prior for o in objectives) / len(batches)
    total.backward()
    ours = [p.grad.to_dense() for p in parameters]

    documents = data.train_dataloader().dataset
    whole = documents[list(range(len(documents))), 1]
    model.zero_grad()
    u = model.document_nll(whole).sum() + 2.5 * model.adapters.deviation(model.adapters.stored).square().sum()
    (u / data.n_tokens).backward()
    torch.testing.assert_close(total, u / data.n_tokens)
    for mine, parameter in zip(ours, parameters, strict=True):
        torch.testing.assert_close(mine, parameter.grad.to_dense(), rtol=1e-9, atol=1e-12)


def fit(batch_size: int, accumulate: int) -> HierarchicalLoRA:
    data = tiny_data({"a": 6, "b": 3}, batch_size)
    model = build(data, lr=1e-2)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, data)
    return model


def test_accumulated_batches_equal_a_larger_batch_also_where_the_last_window_is_short():
    # 9 documents: two windows of 2 × 3 and 1 × 3, against batches of 6 and 3.
    accumulated, whole = fit(batch_size=3, accumulate=2), fit(batch_size=6, accumulate=1)
    for ours, theirs in zip(accumulated.adapters.parameters(), whole.adapters.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


FORMS = {
    "centered": (5.0, "centered"),
    "noncentered": (5.0, "noncentered"),
    "none": (0.0, "centered"),
    "one": (math.inf, "centered"),
}


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("estimator", ["by_document", "dense"])
@pytest.mark.parametrize("bound", [1e-3, 1e3])
def test_gradients_are_clipped_as_torch_clips_dense_ones(algorithm, estimator, bound):
    data = tiny_data({"a": 5, "b": 3, "c": 3}, 2)
    data.trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=1, global_rank=0)
    torch.manual_seed(0)
    model = HierarchicalLoRA(
        tiny_opt(), ["a", "b", "c"], data.task_documents, data.n_tokens, 5.0, rank=2, estimator=estimator
    )
    random_factors(model)
    objective = model.objective(next(iter(data.train_dataloader())))
    (objective.likelihood + objective.prior).backward()
    parameters = list(model.adapters.parameters())
    assert any(p.grad.is_sparse for p in parameters) == (estimator == "by_document")
    expected = [torch.nn.Parameter(torch.zeros_like(p)) for p in parameters]
    for dense, parameter in zip(expected, parameters, strict=True):
        dense.grad = parameter.grad.to_dense().clone()
    before = torch.cat([p.grad.flatten() for p in expected])
    if algorithm == "norm":
        torch.nn.utils.clip_grad_norm_(expected, bound)
    else:
        torch.nn.utils.clip_grad_value_(expected, bound)
    after = torch.cat([p.grad.flatten() for p in expected])
    assert torch.equal(before, after) == (bound > 1)
    model.configure_gradient_clipping(None, bound, algorithm)
    torch.testing.assert_close(torch.cat([p.grad.to_dense().flatten() for p in parameters]), after)


@pytest.mark.parametrize(("source", "target"), list(product(FORMS, FORMS)))
def test_any_form_starts_from_any_other(source, target):
    data = tiny_data(SIZES)
    theirs, ours = (build(data, tau=tau, parameterization=form) for tau, form in (FORMS[source], FORMS[target]))
    random_factors(theirs)
    ours.start_from({"hyper_parameters": dict(theirs.hparams), "state_dict": copy.deepcopy(theirs.state_dict())})
    for layer, mean in ours.mean.items():
        for name in SIZES:
            # One model cannot hold the tasks' own parts, so it is their mean.
            theta = theirs.mean[layer] if target == "one" else theirs.tasks[name][layer]
            torch.testing.assert_close(tuple(ours.tasks[name][layer]), tuple(theta))
        torch.testing.assert_close(tuple(mean), tuple(theirs.mean[layer]))


@pytest.mark.parametrize("key", ["task_names", "layers", "rank", "alpha"])
def test_a_start_from_another_kind_of_run_is_refused_by_what_differs(key):
    model = build(tiny_data(SIZES))
    checkpoint = {"hyper_parameters": {**model.hparams, key: "another"}, "state_dict": model.state_dict()}
    with pytest.raises(UserError, match=f"init_from: that run's {key} is not this one's"):
        model.start_from(checkpoint)
