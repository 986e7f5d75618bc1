"""The two limits of τ against PEFT, an independent implementation of LoRA."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft import __version__ as peft_version
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bora.config.schema import LoRA
from bora.model.targets import DEFAULT_TARGETS
from tests.conftest import hierarchical, random_factors, tiny_data, tiny_opt

SIZES = {"a": 5, "b": 2, "c": 9}
RANK, ALPHA, LR, EPOCHS = 3, 5, 3e-3, 3


class Peft:
    """One PEFT LoRA with torch's AdamW, started at given factors."""

    def __init__(self, lora, dropout=0.0):
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=["q_proj", "v_proj"])
        self.model = get_peft_model(tiny_opt(), config).eval()
        for name, module in self.model.named_modules():
            module.training = "lora_dropout" in name  # the frozen model's own dropout stays off
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        with torch.no_grad():
            for ours, theirs in self.pairs(lora):
                theirs.copy_(ours)
        self.optimiser = torch.optim.AdamW(self.parameters, lr=LR, weight_decay=0.0)

    def pairs(self, lora):
        for layer, factors in lora.items():
            module = self.model.base_model.model.get_submodule(layer)
            yield from zip(factors, (module.lora_A["default"].weight, module.lora_B["default"].weight), strict=True)

    def step(self, ids, labels, factor: float):
        """Take a step on factor · Σ nll, from transformers' own loss (a mean over scored tokens)."""
        self.optimiser.zero_grad()
        if len(ids):
            count = (labels[:, 1:] != -100).sum()
            loss = self.model(input_ids=ids, attention_mask=(labels != -100).long(), labels=labels).loss
            (loss * count * factor).backward()
        else:  # Adam steps with a gradient of zero
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter)
        self.optimiser.step()

    def assert_equals(self, lora):
        for ours, theirs in self.pairs(lora):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def start(tau: float, **options):
    data = tiny_data(SIZES)
    torch.manual_seed(1)
    model = hierarchical(tiny_opt(), list(SIZES), data.task_documents, data.n_tokens, tau, RANK, ALPHA, **options)
    return model, data


def steps(model, data):
    """Train, and yield each batch after its step."""
    optimiser, loader = model.optimizer(LR), data.train_dataloader()
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        assert {batch["batches"] for batch in batches} == {len(batches)} == {4}
        for batch in batches:
            optimiser.zero_grad()
            model.objective(batch).loss.backward()
            optimiser.step()
            yield batch


@pytest.mark.parametrize("estimator", ["by_document", "dense"])
def test_tau_zero_equals_separate_peft_fine_tunes_step_for_step(estimator):
    """by_document: a task steps only when it has data. dense: otherwise its Adam steps with a gradient of zero."""
    model, data = start(0.0, estimator=estimator)
    pefts = [Peft(model.tasks[task]) for task in SIZES]
    first, absences = model.adapters.stored.detach().clone(), 0
    for batch in steps(model, data):
        for d, (task, peft) in enumerate(zip(SIZES, pefts, strict=True)):
            rows = batch["task"] == d
            absences += not rows.any()
            if rows.any() or estimator == "dense":
                peft.step(batch["input_ids"][rows], batch["labels"][rows], 4 / data.n_tokens)
            peft.assert_equals(model.tasks[task])
    assert absences > 0
    assert (model.adapters.stored - first).abs().max() > 2 * LR


def test_tau_infinity_equals_one_peft_lora_on_the_pooled_data():
    model, data = start(float("inf"))
    pooled = Peft(model.mean)
    for batch in steps(model, data):
        pooled.step(batch["input_ids"], batch["labels"], 4 / data.n_tokens)
        for task in SIZES:  # every task is Θ
            pooled.assert_equals(model.tasks[task])


def test_default_targets_equal_pefts_for_every_causal_language_model():
    every = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    theirs = {name: targets for name, targets in every.items() if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    assert theirs == {name: DEFAULT_TARGETS.get(name) for name in theirs}
    assert theirs.keys() == DEFAULT_TARGETS.keys() or peft_version < "0.21"


def test_rslora_scales_as_in_peft():
    ours = LoRA(rank=3, alpha=6.0, rslora=True, target_modules=None, init_std=0.0, dropout=0.0)
    theirs = get_peft_model(tiny_opt(), LoraConfig(r=3, lora_alpha=6.0, use_rslora=True, target_modules=["q_proj"]))
    (scale,) = {m.scaling["default"] for m in theirs.modules() if hasattr(m, "lora_A")}
    assert ours.effective_alpha / ours.rank == pytest.approx(scale)


@pytest.mark.parametrize("by_row", [False, True])
def test_dropout_equals_pefts(by_row):
    model, data = start(float("inf"))
    random_factors(model)
    peft, (batch, *_) = Peft(model.mean, dropout=0.4), data.train_dataloader()
    theta = model.adapters.mean.detach().clone().requires_grad_()
    torch.manual_seed(2)
    nll = model.backbone.nll(batch, theta.expand(len(batch["task"]), -1) if by_row else theta, dropout=0.4).sum()
    nll.backward()
    torch.manual_seed(2)
    labels = batch["labels"]
    loss = peft.model(input_ids=batch["input_ids"], labels=labels).loss * (labels[:, 1:] != -100).sum()
    loss.backward()
    torch.testing.assert_close(nll, loss)
    gradients = (f for lora in model.backbone.layout.factors(theta.grad).values() for f in lora)
    for ours, (_, theirs) in zip(gradients, peft.pairs(model.mean), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-4, atol=1e-5)
