import pytest
import torch

from bora.model.adapters import Adapters, StackedLoRA
from bora.model.module import HierarchicalLoRA
from tests.conftest import VOCABULARY, merged, random_factors, tiny_opt

TASKS = ["a", "b", "c.d"]  # a dot in a task's name must do no harm


def build(parameterization: str, dtype=torch.float64, tau: float = 10.0, targets=None) -> HierarchicalLoRA:
    tau = float("inf") if parameterization == "shared" else tau
    model = HierarchicalLoRA(
        tiny_opt(dtype=dtype), TASKS, [10] * len(TASKS), 100, tau, rank=3, alpha=6,
        target_modules=targets, parameterization=parameterization,
    )  # fmt: skip
    model = model.to(dtype)
    random_factors(model)
    return model


def batch(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (5, 7), generator=generator)
    return {"input_ids": ids, "labels": ids.clone(), "task": torch.tensor([2, 0, 0, 1, 2])}


@pytest.mark.parametrize("targets", [None, "all-linear"])  # OPT flattens its rows before fc1
@pytest.mark.parametrize("parameterization", ["centered", "noncentered", "shared"])
def test_one_mixed_forward_equals_each_tasks_merged_model(parameterization, targets):
    model, b = build(parameterization, targets=targets), batch()
    ours = model.document_nll(b)
    for row, task in enumerate(b["task"].tolist()):
        alone = merged(tiny_opt(dtype=torch.float64), model.tasks[TASKS[task]], scale=6 / 3)
        ids = b["input_ids"][row : row + 1]
        expected = torch.nn.functional.cross_entropy(alone(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        torch.testing.assert_close(ours[row], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("targets", [None, "all-linear"])
@pytest.mark.parametrize("parameterization", ["centered", "noncentered"])
def test_gradients_of_likelihood_and_prior_equal_a_loop_over_tasks(parameterization, targets):
    model, b = build(parameterization, targets=targets), batch()
    (model.document_nll(b).sum() + model.prior()).backward()

    # The loop: every task a model of its own, its LoRA a leaf θ_d, written out as in eq. 3 and 5.
    theta = [
        {
            layer: tuple(f.detach().clone().requires_grad_() for f in lora)
            for layer, lora in model.tasks[t].items()
        }
        for t in TASKS
    ]
    mean = {
        layer: tuple(f.detach().clone().requires_grad_() for f in lora) for layer, lora in model.mean.items()
    }
    energy = 0.0
    for d in range(len(TASKS)):
        base = tiny_opt(dtype=torch.float64).requires_grad_(False)
        weights = {
            f"{layer}.weight": base.get_submodule(layer).weight + 6 / 3 * B @ A
            for layer, (A, B) in theta[d].items()
        }
        for row in (b["task"] == d).nonzero()[:, 0]:
            ids = b["input_ids"][row : row + 1]
            logits = torch.func.functional_call(base, weights, (ids,)).logits
            energy = energy + torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
        for layer, factors in theta[d].items():
            for factor, centre in zip(factors, mean[layer], strict=True):
                energy = energy + model.tau / 2 * ((factor - centre) ** 2).sum()
    energy.backward()

    for layer, stack in model.adapters.items():
        for i, name in enumerate("AB"):
            of_theta = torch.stack([theta[d][layer][i].grad for d in range(len(TASKS))])
            of_mean = mean[layer][i].grad
            if parameterization == "centered":
                stored, at_mean = getattr(stack, name).grad, of_mean
            else:  # θ_d = Θ + δ_d: δ_d takes θ_d's gradient, Θ takes all of them and its own
                stored, at_mean = getattr(stack, f"{name}_offset").grad, of_mean + of_theta.sum(0)
            torch.testing.assert_close(stored, of_theta, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(getattr(stack, f"{name}_mean").grad, at_mean, rtol=1e-9, atol=1e-9)


def test_padding_a_batch_more_changes_nothing():
    model, b = build("centered"), batch()
    padded = {
        "input_ids": torch.nn.functional.pad(b["input_ids"], (0, 9), value=1),
        "labels": torch.nn.functional.pad(b["labels"], (0, 9), value=-100),
        "task": b["task"],
    }
    torch.testing.assert_close(model.document_nll(padded), model.document_nll(b), rtol=1e-12, atol=0)


def test_outside_the_context_the_backbone_is_bare():
    model, b = build("centered"), batch()
    ids = b["input_ids"]
    expected = tiny_opt(dtype=torch.float64)(ids).logits
    torch.testing.assert_close(model.backbone.model(ids).logits, expected)
    bare = model.document_nll(b, adapted=False)
    assert not torch.allclose(bare, model.document_nll(b))


def test_the_backbone_stays_frozen_and_in_evaluation_mode():
    model = build("centered").train()
    assert not model.backbone.model.training
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_tasks_are_views_in_the_centered_form():
    model = build("centered")
    with torch.no_grad():
        for lora in model.tasks["b"].values():
            lora.A.zero_()
    stack = next(iter(model.adapters.stacks.values()))
    assert stack.A[1].abs().max() == 0
    assert stack.A[0].abs().max() > 0
    assert list(model.tasks) == TASKS
    with pytest.raises(KeyError):
        model.tasks["nobody"]


@pytest.mark.parametrize("parameterization", ["centered", "noncentered", "shared"])
def test_distances_are_the_norm_of_all_factors_together(parameterization):
    model = build(parameterization)
    for d, name in enumerate(TASKS):
        squares = sum(
            ((factor - centre) ** 2).sum().item()
            for layer, lora in model.tasks[name].items()
            for factor, centre in zip(lora, model.mean[layer], strict=True)
        )
        assert model.adapters.distances()[d].item() == pytest.approx(squares**0.5)


@pytest.mark.parametrize("parameterization", ["centered", "noncentered"])
def test_every_task_starts_at_the_mean_or_around_it(parameterization):
    stack = StackedLoRA(40, 30, 50, rank=4, alpha=4, parameterization=parameterization)
    assert all(d.abs().max() == 0 for d in stack.deviations())
    assert stack.B_mean.abs().max() == 0
    assert stack.A_mean.abs().max() > 0
    stack.start_at_mean(0.001)
    assert torch.cat([d.flatten() for d in stack.deviations()]).std().item() == pytest.approx(0.001, rel=0.02)


def test_parameter_count_is_lora_s():
    model = build("centered")
    layers, rank, width = 4, 3, 16
    assert model.adapters.params_per_task == layers * rank * (width + width)


def test_an_unknown_parameterization_is_refused():
    with pytest.raises(ValueError, match="parameterization"):
        Adapters({"x": torch.nn.Linear(2, 2)}, ["a"], 1, 1, "sideways")
