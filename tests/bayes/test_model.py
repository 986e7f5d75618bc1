"""The whole model against a loop over tasks, its objective against U/T, and its state saved and loaded."""

import math
from types import SimpleNamespace

import pytest
import torch

from bora.bayes.model import HierarchicalLoRA
from bora.errors import UserError
from tests.conftest import VOCABULARY, hierarchical, merged, random_factors, tiny_data, tiny_opt

TASKS = ["a", "b", "c.d"]


def build(tau: float = 10.0, **options) -> HierarchicalLoRA:
    model = hierarchical(tiny_opt(), TASKS, [10] * 3, 100, tau, rank=3, alpha=6, **options).double()
    random_factors(model)
    return model


def batch() -> dict:
    ids = torch.randint(4, VOCABULARY, (5, 7), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids.clone(), "task": torch.tensor([2, 0, 0, 1, 2]), "batches": 1}


def cross_entropy(logits, ids):
    return torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")


@pytest.mark.parametrize("targets", [None, "all-linear"])  # OPT flattens its rows before fc1
@pytest.mark.parametrize(("tau", "parameterization"), [(10.0, "centered"), (10.0, "noncentered"), (math.inf, "")])
def test_one_mixed_forward_equals_each_tasks_merged_model(tau, parameterization, targets):
    model, b = build(tau, parameterization=parameterization, targets=targets), batch()
    found = {under: model.nll(b, under) for under in ("task", "mean", "base")}
    for row, task in enumerate(b["task"].tolist()):
        ids = b["input_ids"][row : row + 1]
        for under, lora in (("task", model.tasks[TASKS[task]]), ("mean", model.mean), ("base", {})):
            alone = merged(tiny_opt(dtype=torch.float64), lora, scale=6 / 3)
            torch.testing.assert_close(found[under][row], cross_entropy(alone(ids).logits, ids), rtol=1e-10, atol=0)


@pytest.mark.parametrize("targets", [None, "all-linear"])
@pytest.mark.parametrize("parameterization", ["centered", "noncentered"])
def test_gradients_of_likelihood_and_prior_equal_a_loop_over_tasks(parameterization, targets):
    model, b = build(parameterization=parameterization, targets=targets), batch()
    (model.nll(b).sum() + model.prior_potential()).backward()

    def leaves(lora):
        return {layer: tuple(f.detach().clone().requires_grad_() for f in pair) for layer, pair in lora.items()}

    # The loop: one model for each task, its LoRA a leaf θ_d, written out as in eq. 3 and 5.
    theta, mean = [leaves(model.tasks[t]) for t in TASKS], leaves(model.mean)
    energy = 0.0
    for d in range(len(TASKS)):
        base = tiny_opt(dtype=torch.float64).requires_grad_(False)
        weights = {
            f"{layer}.weight": base.get_submodule(layer).weight + 6 / 3 * B @ A for layer, (A, B) in theta[d].items()
        }
        for row in (b["task"] == d).nonzero()[:, 0]:
            ids = b["input_ids"][row : row + 1]
            energy = energy + cross_entropy(torch.func.functional_call(base, weights, (ids,)).logits, ids)
        for layer, factors in theta[d].items():
            for factor, centre in zip(factors, mean[layer], strict=True):
                energy = energy + model.tau / 2 * ((factor - centre) ** 2).sum()
    energy.backward()

    # Both parts add to the gradient of the same matrix; one part is sparse, over the batch's rows.
    of_stored, of_centre = (
        model.backbone.layout.factors(parameter.grad.to_dense())
        for parameter in (model.adapters.stored, model.adapters.mean)
    )
    for layer in mean:
        for i in range(2):
            of_theta = torch.stack([theta[d][layer][i].grad for d in range(len(TASKS))])
            at_mean = mean[layer][i].grad
            if parameterization == "noncentered":
                # θ_d = Θ + δ_d: δ_d has θ_d's gradient, Θ the sum of them plus its own
                at_mean = at_mean + of_theta.sum(0)
            torch.testing.assert_close(of_stored[layer][i], of_theta, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(of_centre[layer][i], at_mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("estimator", ["by_document", "dense"])
@pytest.mark.parametrize("parameterization", ["centered", "noncentered"])
@pytest.mark.parametrize(("batch_size", "window"), [(1, 1), (3, 1), (8, 1), (3, 2)])
def test_an_epochs_steps_average_to_u_over_t_and_its_gradient(estimator, parameterization, batch_size, window):
    data = tiny_data({"a": 5, "b": 3}, batch_size)
    options = {"estimator": estimator, "parameterization": parameterization}
    model = hierarchical(tiny_opt(), ["a", "b"], data.task_documents, data.n_tokens, 5.0, **options).double()
    random_factors(model)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=window, global_rank=0, strategy=strategy)
    batches = list(data.train_dataloader())
    assert len(batches) == window * math.ceil(8 / (batch_size * window))
    # Lightning divides each loss by the window: a step's loss is the mean over its batches, an epoch's over its steps.
    total = sum(model.objective(batch).loss for batch in batches) / len(batches)
    total.backward()
    ours = [p.grad.to_dense() for p in model.adapters.parameters()]

    documents = data.train_dataloader().dataset
    whole = documents[list(range(len(documents))), 1]
    model.zero_grad()
    u = model.nll(whole).sum() + 2.5 * model.adapters.deviations().square().sum()
    (u / data.n_tokens).backward()
    torch.testing.assert_close(total, u / data.n_tokens)
    for mine, parameter in zip(ours, model.adapters.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad.to_dense(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tau", [0.0, 10.0, math.inf])
def test_a_model_is_rebuilt_from_its_hyperparameters_and_state(tau):
    model, b = build(tau, penalty="norm", parameterization="centered", targets=["q_proj"]), batch()
    state = model.trained_state()
    assert all(key.startswith("adapters.stacks.") for key in state)
    again = HierarchicalLoRA.from_hyperparameters(tiny_opt(), model.hyperparameters).double()
    again.load_trained_state(state)
    assert again.hyperparameters == model.hyperparameters
    assert torch.equal(again.nll(b), model.nll(b))
    assert again.n_parameters == 2 * 3 * (16 + 16)  # layers × rank × (n_in + n_out)
    first = next(iter(state))
    for spoiled in (state | {"adapters.more": state[first]}, {k: v for k, v in state.items() if k != first}, {}):
        with pytest.raises(RuntimeError, match="key"):
            again.load_trained_state(spoiled)


def test_a_run_starts_only_from_one_with_the_same_layers_rank_and_alpha():
    theirs, ours = build(10.0, parameterization="centered"), build(3.0)
    checkpoint = {"hyper_parameters": theirs.hyperparameters, "state_dict": theirs.trained_state()}
    with torch.no_grad():
        ours.adapters.stored.zero_()
    ours.start_from(checkpoint)
    for d in range(3):
        torch.testing.assert_close(ours.adapters.theta(d), theirs.adapters.theta(d))
    for key in ("layers", "rank", "alpha"):
        other = checkpoint | {"hyper_parameters": theirs.hyperparameters | {key: "another"}}
        with pytest.raises(UserError, match=f"that run's {key} is not this one's"):
            ours.start_from(other)
    # Tasks are matched by name; one that the other run lacks starts at Θ.
    ours.start_from(checkpoint | {"hyper_parameters": theirs.hyperparameters | {"task_names": ["b", "a", "x"]}})
    for d, expected in enumerate([theirs.adapters.theta(1), theirs.adapters.theta(0), theirs.adapters.mean]):
        torch.testing.assert_close(ours.adapters.theta(d), expected)


def test_unknown_choices_are_refused():
    for key in ("likelihood", "estimator"):
        with pytest.raises(ValueError, match=f"{key} must be one of .*, not 'other'"):
            build(**{key: "other"})
