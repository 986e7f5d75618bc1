"""The forms represent the same θ_d and Θ, start as PEFT's LoRA does, and are saved by layer."""

import math
from itertools import product

import pytest
import torch

from bora.bayes.forms import Centered, NonCentered, Separate, Shared, choose_form
from bora.model.batch import find_places
from bora.model.lora import Layout

TASKS = ["a", "b", "c.d"]  # a task's name may contain a dot
LAYOUT = Layout({"layers.0.q": (4, 5), "layers.1.q": (4, 3)}, rank=2)
FORMS = [Centered, NonCentered, Shared, Separate]


def build(form, seed: int = 0):
    torch.manual_seed(seed)
    adapters = form(LAYOUT, TASKS)
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter)
    return adapters


def flat(lora) -> torch.Tensor:
    return torch.cat([factor.flatten() for pair in lora.values() for factor in pair])


def test_tau_chooses_the_form():
    assert choose_form(math.inf, "centered") is Shared
    assert choose_form(0.0, "noncentered") is Separate
    assert [choose_form(3.0, name) for name in ("centered", "noncentered")] == [Centered, NonCentered]
    with pytest.raises(ValueError, match="parameterization must be one of centered, noncentered, not 'sideways'"):
        choose_form(3.0, "sideways")


@pytest.mark.parametrize("form", FORMS)
def test_tasks_rows_deviations_and_distances_agree(form):
    adapters = build(form)
    thetas = torch.stack([flat(adapters.tasks[task]) for task in TASKS])
    torch.testing.assert_close(torch.stack([adapters.theta(d) for d in range(3)]), thetas)
    theta, _ = adapters.rows(find_places(torch.tensor([2, 0])), torch.float32)
    torch.testing.assert_close(theta.expand(2, -1), thetas[[2, 0]])
    torch.testing.assert_close(adapters.deviations(slice(1, 3)), (thetas - adapters.mean)[1:])
    torch.testing.assert_close(adapters.distances(), (thetas - adapters.mean).norm(dim=1).double())
    assert list(adapters.tasks) == TASKS
    assert "nobody" not in adapters.tasks


@pytest.mark.parametrize("form", [Centered, NonCentered])
@pytest.mark.parametrize("std", [0.0, 0.001])
def test_every_task_starts_at_the_mean_or_around_it(form, std):
    adapters = form(Layout({"x": (40, 30)}, 4), [f"{i}" for i in range(50)], std)
    assert adapters.deviations().std().item() == pytest.approx(std, rel=0.02)
    A, B = adapters.layout.factors(adapters.mean)["x"]
    assert B.abs().max() == 0
    assert 0 < A.abs().max() <= 1 / 40**0.5  # PEFT's initialisation


@pytest.mark.parametrize("form", FORMS)
def test_factors_are_saved_by_layer_and_load_again(form):
    adapters, other = build(form), build(form, seed=1)
    state = adapters.saved()
    stem = "adapters.stacks.layers/0/q."
    assert torch.equal(state[f"{stem}A_mean"], adapters.layout.factors(adapters.mean)["layers.0.q"].A)
    if form is not Shared:
        offset = "_offset" if form is NonCentered else ""
        theta = state[f"{stem}B{offset}"][1] + (state[f"{stem}B_mean"] if offset else 0)
        torch.testing.assert_close(theta, adapters.tasks["b"]["layers.0.q"].B)
    other.start_from(state)
    for ours, theirs in zip(other.parameters(), adapters.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    del state[f"{stem}A_mean"]
    with pytest.raises(KeyError):
        other.start_from(state)


@pytest.mark.parametrize(("source", "target"), list(product(FORMS, FORMS)))
def test_any_form_starts_from_any_other(source, target):
    theirs, ours = build(source), build(target, seed=1)
    ours.start_from(theirs.saved())
    torch.testing.assert_close(ours.mean, theirs.mean)
    for d in range(3):
        # One shared model cannot represent the tasks' deviations, so every task is at Θ.
        torch.testing.assert_close(ours.theta(d), theirs.mean if target is Shared else theirs.theta(d))
