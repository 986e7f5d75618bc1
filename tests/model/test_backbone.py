import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from bora.errors import UserError
from bora.model.backbone import Backbone
from bora.train.module import HierarchicalLoRA
from tests.conftest import random_factors, tiny_opt

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}


def test_a_model_that_reads_ahead_is_refused():
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    model.model.layers[0].register_forward_hook(lambda layer, args, out: out + out.mean(1, keepdim=True))
    with pytest.raises(UserError, match="reads the whole text"):
        Backbone(model)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_other_architectures_mixed_forward_equals_one_task_at_a_time(family):
    torch.manual_seed(0)
    if family == "gpt2":
        base = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=32))
    else:
        base = LlamaForCausalLM(LlamaConfig(**TINY))
    model = HierarchicalLoRA(base.double(), ["a", "b"], [2, 2], 10, 1.0, rank=2).double()
    for p in model.adapters.parameters():
        torch.nn.init.normal_(p, std=0.3)
    ids = torch.randint(0, 50, (4, 9))
    task = torch.tensor([0, 1, 1, 0])
    mixed = model.document_nll({"input_ids": ids, "labels": ids, "task": task})
    alone = [
        model.document_nll({"input_ids": ids[i : i + 1], "labels": ids[i : i + 1], "task": task[i : i + 1]})[0]
        for i in range(4)
    ]
    torch.testing.assert_close(mixed, torch.stack(alone))
    expected = torch.nn.functional.cross_entropy(base(ids[:1]).logits[0, :-1], ids[0, 1:], reduction="sum")
    torch.testing.assert_close(
        model.document_nll({"input_ids": ids[:1], "labels": ids[:1], "task": task[:1]}, adapted=False)[0], expected
    )


def test_a_compiled_backbone_has_the_same_objective_and_gradients():
    ids = torch.arange(40).view(2, 20) % 30 + 5
    found = []
    for compile in (False, True):
        model = HierarchicalLoRA(tiny_opt(), ["a", "b"], [1, 1], 40, 1.0, rank=2, compile=compile)
        random_factors(model)
        for width in (20, 13):  # lengths differ by batch
            batch = {"input_ids": ids[:, :width], "labels": ids[:, :width], "task": torch.tensor([1, 0])}
            objective = model.objective(batch | {"batches": 3})
            (objective.likelihood + objective.prior).backward()
        with torch.no_grad():
            bare = model.document_nll(batch, adapted=False)
        adapters = model.adapters
        found.append((objective.likelihood, bare, adapters.stored.grad.to_dense(), adapters.mean.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
