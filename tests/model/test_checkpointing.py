"""Gradient checkpointing, where blocks keep only their input: the same numbers to the last bit, in less memory."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from tests.conftest import hierarchical, random_factors, tiny_opt
from tests.model.test_architectures import mixed_batch, tiny

TASKS = ["a", "b", "c"]


class Other(nn.Linear):
    """Stands in for a quantised layer, whose computation is not bora's."""


def opt_of_other_layers():
    model = tiny_opt()
    for layer in model.modules():
        if type(layer) is nn.Linear and layer is not model.lm_head:
            layer.__class__ = Other
    return model


MODELS = {
    "other": opt_of_other_layers,
    "opt": tiny_opt,
    "llama": lambda: tiny("llama").float(),
    "gpt2": lambda: tiny("gpt2").float(),
}


def build(base, gradient_checkpointing: bool, **options):
    how = {"gradient_checkpointing": gradient_checkpointing}
    model = hierarchical(base, TASKS, [2, 1, 2], 23, 5.0, targets="all-linear", how=how, **options)
    random_factors(model)
    return model


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_leaves_the_objective_and_its_gradients_the_same(name, dropout):
    found, batch = [], mixed_batch() | {"batches": 1}
    for recompute in (False, True):
        model = build(MODELS[name](), recompute, dropout=dropout)
        torch.manual_seed(2)
        objective = model.objective(batch)
        objective.loss.backward()
        after = torch.rand(1)  # the backward has restored the random state
        gradients = model.adapters.stored.grad.to_dense(), model.adapters.mean.grad
        found.append((objective.likelihood.detach(), *gradients, after))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert found[0][1].abs().sum() > 0


def test_a_block_keeps_only_its_input():
    kept = []
    for recompute in (False, True):
        model = build(tiny("llama", num_hidden_layers=6).float(), recompute)
        frozen, tensors = {p.data_ptr() for p in model.backbone.parameters()}, []
        with saved_tensors_hooks(lambda tensor: tensors.append(tensor) or tensor, lambda tensor: tensor):  # noqa: B023
            loss = model.backbone.nll(mixed_batch(), model.adapters.mean).sum()
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        kept.append(sum(n for place, n in storages.items() if place not in frozen))
        loss.backward()
    assert kept[1] < kept[0] / 8
