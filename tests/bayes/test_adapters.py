import pytest
import torch

from bora.bayes.adapters import Adapters
from bora.train.module import HierarchicalLoRA
from tests.conftest import VOCABULARY, merged, random_factors, tiny_opt

TASKS = ["a", "b", "c.d"]  # a dot in a task's name must do no harm


def build(parameterization: str, dtype=torch.float64, tau: float = 10.0, targets=None, **options):
    tau = float("inf") if parameterization == "shared" else tau
    model = HierarchicalLoRA(
        tiny_opt(dtype=dtype), TASKS, [10] * len(TASKS), 100, tau, rank=3, alpha=6,
        target_modules=targets, parameterization=parameterization, **options,
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

    # The two parts reach the same matrix, one sparsely, over the rows of the batch.
    of_stored, of_centre = (
        model.adapters.layout.factors(parameter.grad.to_dense())
        for parameter in (model.adapters.stored, model.adapters.mean)
    )
    for layer in mean:
        for i in range(2):
            of_theta = torch.stack([theta[d][layer][i].grad for d in range(len(TASKS))])
            at_mean = mean[layer][i].grad
            if parameterization == "noncentered":
                # θ_d = Θ + δ_d: δ_d takes θ_d's gradient, Θ takes all of them and its own
                at_mean = at_mean + of_theta.sum(0)
            torch.testing.assert_close(of_stored[layer][i], of_theta, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(of_centre[layer][i], at_mean, rtol=1e-9, atol=1e-9)


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


def test_below_the_first_adapter_there_is_no_graph():
    model = build("centered", targets=r".*layers\.1\..*(q|v)_proj")
    seen = {}
    for name, layer in model.backbone.model.named_modules():
        if name.endswith(("layers.0", "layers.1")):
            layer.register_forward_hook(
                lambda _, args, out, name=name: seen.update({name[-1]: out[0].requires_grad})
            )
    model.document_nll(batch())
    assert seen == {"0": False, "1": True}


def test_the_backbone_stays_frozen_and_in_evaluation_mode():
    model = build("centered").train()
    assert not model.backbone.model.training
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_tasks_are_views_in_the_centered_form():
    model = build("centered")
    with torch.no_grad():
        for lora in model.tasks["b"].values():
            lora.A.zero_()
    lora = next(iter(model.adapters.layout.factors(model.adapters.stored).values()))
    assert lora.A[1].abs().max() == 0
    assert lora.A[0].abs().max() > 0
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
@pytest.mark.parametrize("std", [0.0, 0.001])
def test_every_task_starts_at_the_mean_or_around_it(parameterization, std):
    layer = torch.nn.Linear(40, 30)
    adapters = Adapters({"x": layer}, [f"{i}" for i in range(50)], 4, 4, parameterization, std)
    deviation = adapters.deviation(adapters.stored)
    assert deviation.std().item() == pytest.approx(std, rel=0.02)
    lora = adapters.mean_lora["x"]
    assert lora.B.abs().max() == 0
    assert 0 < lora.A.abs().max() <= 1 / 40**0.5  # PEFT's start


@pytest.mark.parametrize("parameterization", ["centered", "noncentered", "shared"])
def test_on_disk_the_factors_stand_by_layer_and_load_again(parameterization):
    model, other = build(parameterization), build(parameterization)
    state = model.adapters.state_dict()
    ((layer, shape), *_) = model.adapters.layout.shapes.items()
    stem = f"stacks.{layer.replace('.', '/')}."
    assert state[f"{stem}A_mean"].shape == shape[0]
    if parameterization != "shared":
        offset = "_offset" if parameterization == "noncentered" else ""
        assert state[f"{stem}B{offset}"].shape == (len(TASKS), *shape[1])
        theta = state[f"{stem}B{offset}"][1] + (state[f"{stem}B_mean"] if offset else 0)
        torch.testing.assert_close(theta, model.tasks["b"][layer].B)
    with torch.no_grad():
        for parameter in other.adapters.parameters():
            parameter.zero_()
    found = other.load_state_dict({f"adapters.{k}": v for k, v in state.items()}, strict=False)
    assert not found.unexpected_keys
    assert not [key for key in found.missing_keys if not key.startswith("backbone")]
    for ours, theirs in zip(other.adapters.parameters(), model.adapters.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_parameter_count_is_lora_s():
    model = build("centered")
    layers, rank, width = 4, 3, 16
    assert model.adapters.params_per_task == layers * rank * (width + width)


def test_an_unknown_parameterization_is_refused():
    with pytest.raises(ValueError, match="parameterization"):
        Adapters({"x": torch.nn.Linear(2, 2)}, ["a"], 1, 1, "sideways")
