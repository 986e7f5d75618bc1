"""The two limits of τ against PEFT, an independent implementation of LoRA."""

import pytest
import torch
from lightning.pytorch import Callback
from peft import LoraConfig, get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bora.model.targets import DEFAULT_TARGETS
from bora.train.module import HierarchicalLoRA
from tests.conftest import tiny_data, tiny_opt

SIZES = {"a": 5, "b": 2, "c": 9}
RANK, ALPHA, LR = 3, 5, 3e-3


def peft_model():
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])
    return get_peft_model(tiny_opt(), config).eval()


def start_from(peft, lora) -> None:
    with torch.no_grad():
        for layer, (A, B) in lora.items():
            module = peft.base_model.model.get_submodule(layer)
            module.lora_A["default"].weight.copy_(A)
            module.lora_B["default"].weight.copy_(B)


def factors_of(peft, layer: str):
    module = peft.base_model.model.get_submodule(layer)
    return module.lora_A["default"].weight, module.lora_B["default"].weight


class Recorder(Callback):
    """Every batch, and every task's LoRA after it."""

    def __init__(self):
        self.batches, self.after = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.batches.append(batch)
        self.after.append(
            {t: {k: (A.clone(), B.clone()) for k, (A, B) in lora.items()} for t, lora in module.tasks.items()}
        )


def train(tau: float, trainer, parameterization="centered", estimator="by_document"):
    data = tiny_data(SIZES)
    torch.manual_seed(1)
    model = HierarchicalLoRA(
        tiny_opt(),
        list(SIZES),
        data.task_documents,
        data.n_tokens,
        tau,
        RANK,
        ALPHA,
        lr=LR,
        parameterization=parameterization,
        estimator=estimator,
    )
    start = {t: {k: (A.clone(), B.clone()) for k, (A, B) in lora.items()} for t, lora in model.tasks.items()}
    recorder = Recorder()
    trainer.callbacks.append(recorder)
    trainer.fit(model, data)
    assert len(recorder.batches) == 3 * 4
    assert {batch["batches"] for batch in recorder.batches} == {4}
    return model, data, start, recorder


def peft_loss(peft, ids, labels):
    """Σ nll in nats by transformers' own loss (a mean over scored tokens)."""
    count = (labels[:, 1:] != -100).sum()
    return peft(input_ids=ids, attention_mask=(labels != -100).long(), labels=labels).loss * count


@pytest.mark.parametrize("estimator", ["by_document", "dense"])
def test_tau_zero_equals_separate_peft_fine_tunes_step_for_step(trainer, estimator):
    """by_document: a task steps when it has data. dense: its Adam goes on with a gradient of zero when it has none."""
    _, data, start, recorder = train(0.0, trainer, estimator=estimator)
    separate = {t: peft_model() for t in SIZES}
    optimisers = {}
    for task, peft in separate.items():
        start_from(peft, start[task])
        optimisers[task] = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=LR, weight_decay=0.0)
    absences = 0
    for batch, after in zip(recorder.batches, recorder.after, strict=True):
        for d, (task, peft) in enumerate(separate.items()):
            optimisers[task].zero_grad(set_to_none=False)
            rows = batch["task"] == d
            if rows.any():
                nll = peft_loss(peft, batch["input_ids"][rows], batch["labels"][rows])
                (nll * 4 / data.n_tokens).backward()  # 4 batches an epoch
            else:
                absences += 1
                for p in peft.parameters():
                    if p.requires_grad:
                        p.grad = torch.zeros_like(p)
            if rows.any() or estimator == "dense":
                optimisers[task].step()
            for layer, lora in after[task].items():
                for ours, theirs in zip(lora, factors_of(peft, layer), strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert absences > 0
    moved = max(
        (a - s).abs().max().item()
        for t in SIZES
        for k in start[t]
        for a, s in zip(recorder.after[-1][t][k], start[t][k], strict=True)
    )
    assert moved > 10 * LR / 5


def test_tau_infinity_equals_one_peft_lora_on_the_pooled_data(trainer):
    _, data, start, recorder = train(float("inf"), trainer)
    pooled = peft_model()
    start_from(pooled, start["a"])
    optimiser = torch.optim.AdamW([p for p in pooled.parameters() if p.requires_grad], lr=LR, weight_decay=0.0)
    for batch, after in zip(recorder.batches, recorder.after, strict=True):
        optimiser.zero_grad()
        nll = peft_loss(pooled, batch["input_ids"], batch["labels"])
        (nll * 4 / data.n_tokens).backward()
        optimiser.step()
        for task in SIZES:  # every task is Θ
            for layer, lora in after[task].items():
                for ours, theirs in zip(lora, factors_of(pooled, layer), strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("parameterization", ["centered", "noncentered"])
def test_a_huge_tau_holds_the_tasks_together(trainer, parameterization):
    model, *_ = train(1e9, trainer, parameterization)
    assert model.adapters.distances().max() < 0.1


def test_at_tau_zero_the_mean_is_the_average_of_the_tasks(trainer):
    model, *_ = train(0.0, trainer)
    torch.testing.assert_close(model.adapters.mean, model.adapters.stored.mean(0))


def test_default_targets_are_pefts_for_every_causal_language_model():
    assert {
        architecture: targets
        for architecture, targets in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.items()
        if architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    } == DEFAULT_TARGETS
