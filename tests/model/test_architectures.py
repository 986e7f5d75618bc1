"""Every architecture, tiny and with random weights, against a loop over tasks with PEFT's adapters."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from bora.model.likelihood import IGNORE
from bora.model.targets import find_targets
from tests.conftest import hierarchical, random_factors

TOKENS = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
# Settings named as in Llama's config and as in GPT-2's, and heads that share keys and values.
TINY = TOKENS | {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 32}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 4}
GPT = TOKENS | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
GROUPED = TINY | {"num_key_value_heads": 2, "head_dim": 6}

CONFIGS = {
    "bloom": TOKENS | {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "codegen": GPT | {"n_head": 4, "rotary_dim": 4},
    "cohere": TINY | {"logit_scale": 0.25},
    "falcon": TINY,
    "gemma": GROUPED,
    "gemma2": GROUPED | {"final_logit_softcapping": 2.0},
    "gemma3_text": GROUPED,
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neo": TINY | {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": TINY,
    "gptj": GPT | {"rotary_dim": 4},
    "granite": TINY | {"logits_scaling": 3.0},
    "hyperclovax": TINY | {"logits_scaling": 0.4},
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 4},
    "mixtral": GROUPED | {"num_local_experts": 4},
    "mpt": TOKENS | {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32},
    "opt": TINY | {"word_embed_proj_dim": 12, "ffn_dim": 24, "num_attention_heads": 2, "init_std": 0.3},
    "phi": TINY,
    "phi3": TINY,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "qwen2_moe": GROUPED | {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
    "recurrent_gemma": GROUPED | {"logits_soft_cap": 2.0, "lru_width": 16, "num_hidden_layers": 3, "head_dim": 4},
    "stablelm": TINY,
}
CONFIGS = {name: config for name, config in CONFIGS.items() if name in CONFIG_MAPPING}  # hyperclovax came with 5.10
# Tied and untied embeddings, whatever the architecture's default.
TIED = {"llama": True, "qwen2": True, "gpt2": False, "gemma": False, "opt": False}
# The others compute a part in float32 (a norm, attention, experts), whose last digit depends on rounding.
IN_FLOAT64 = "bloom codegen falcon gpt2 gpt_bigcode gpt_neox opt phi stablelm".split()

RANK, ALPHA, TASKS = 2, 3, 3
LENGTHS = {0: (9, 4), 1: (6,), 2: (2, 7)}  # tokens of each task's documents


def tiny(architecture: str, **changes) -> nn.Module:
    """Build a tiny model; the same configuration has the same weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **CONFIGS[architecture] | changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    if model.config._experts_implementation is not None:
        model.set_experts_implementation("eager")  # the grouped product does not support float64
    with torch.no_grad():  # biases and norms, which start at constants, must matter, too
        for p in model.parameters():
            if p.dim() == 1:
                p += 0.2 * torch.randn_like(p)
    return model.double()


def mixed_batch() -> dict[str, torch.Tensor]:
    """Return shuffled documents of all tasks, padded on the right; one has a prompt of two tokens."""
    torch.manual_seed(1)
    rows = [(task, torch.randint(3, 50, (n,))) for task, lengths in LENGTHS.items() for n in lengths]
    rows = [rows[i] for i in (3, 0, 2, 4, 1)]
    ids = nn.utils.rnn.pad_sequence([ids for _, ids in rows], batch_first=True)
    labels = nn.utils.rnn.pad_sequence([ids for _, ids in rows], batch_first=True, padding_value=IGNORE)
    labels[1, :2] = IGNORE
    return {"input_ids": ids, "labels": labels, "task": torch.tensor([task for task, _ in rows])}


class Pefts:
    """PEFT's model with an adapter for each task."""

    def __init__(self, base: nn.Module, targets, loras):
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets)
        self.model = get_peft_model(base, config, adapter_name="a")
        for task in loras:
            if task != "a":
                self.model.add_adapter(task, config)
        self.model.double().eval()
        for task, lora in loras.items():
            names = {
                n.removesuffix(f".lora_A.{task}") for n, _ in self.model.named_modules() if n.endswith(f"A.{task}")
            }
            assert names == {f"base_model.model.{layer}" for layer in lora}
            with torch.no_grad():
                for layer, factors in lora.items():
                    for ours, theirs in zip(factors, self.factors(task, layer), strict=True):
                        theirs.copy_(ours)

    def factors(self, task: str, layer: str) -> tuple[nn.Parameter, nn.Parameter]:
        module = self.model.base_model.model.get_submodule(layer)
        return module.lora_A[task].weight, module.lora_B[task].weight


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_mixed_batch_equals_a_loop_over_tasks_with_pefts_adapters(architecture):
    """Compare the NLL of each document and the gradients of A and B of all linear layers: three tasks, five lengths."""
    changes = {"tie_word_embeddings": TIED[architecture]} if architecture in TIED else {}
    base = tiny(architecture, **changes)
    # PEFT's all-linear adapts experts, too, if they are tensors and not layers.
    theirs = list(find_targets(base, "all-linear")) if architecture == "mixtral" else "all-linear"
    model = hierarchical(base, list("abc"), [1] * TASKS, 1, 0.0, RANK, ALPHA, "all-linear").double()
    random_factors(model)
    batch = mixed_batch()
    weights = torch.linspace(0.5, 2, len(batch["task"]), dtype=torch.float64)
    nll = model.nll(batch)
    (nll * weights).sum().backward()
    gradients = model.adapters.stored.grad.to_dense()
    close = {"rtol": 1e-9, "atol": 1e-11} if architecture in IN_FLOAT64 else {"rtol": 1e-4, "atol": 1e-5}
    peft = Pefts(tiny(architecture, **changes), theirs, dict(model.tasks))
    for task, name in enumerate("abc"):
        peft.model.set_adapter(name)
        for row in (batch["task"] == task).nonzero()[:, 0].tolist():
            scored = batch["labels"][row] != IGNORE
            ids = batch["input_ids"][row, : scored.nonzero().max() + 1]  # no padding
            logits = peft.model(input_ids=ids[None]).logits[0, :-1]
            expected = nn.functional.cross_entropy(logits, batch["labels"][row, 1 : len(ids)], reduction="sum")
            torch.testing.assert_close(nll[row].detach(), expected.detach(), **close)
            (expected * weights[row]).backward()
        for layer, factors in model.backbone.layout.factors(gradients[task]).items():
            for ours, parameter in zip(factors, peft.factors(name, layer), strict=True):
                torch.testing.assert_close(ours, parameter.grad, **close)
                assert ours.abs().max() > 1e-6
