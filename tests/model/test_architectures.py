"""Every architecture, tiny and with random weights, against a loop over tasks with PEFT's adapters."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from bora.bayes.adapters import LowRank, add_low_rank
from bora.errors import UserError
from bora.model.backbone import Backbone
from bora.model.likelihood import IGNORE, token_nll
from bora.model.targets import find_targets
from bora.train.module import HierarchicalLoRA
from tests.conftest import random_factors

TOKENS = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
# Layer names as Llama's config has them, as GPT-2's has, and heads that share keys and values.
TINY = TOKENS | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32,
}
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
    "gpt_neo": TOKENS
    | {
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 32,
    },
    "gpt_neox": TINY,
    "gptj": GPT | {"rotary_dim": 4},
    "granite": TINY | {"logits_scaling": 3.0},
    "hyperclovax": TINY | {"logits_scaling": 0.4},
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 4},
    "mixtral": GROUPED | {"num_local_experts": 4},
    "mpt": TOKENS | {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32},
    "opt": TOKENS
    | {
        "hidden_size": 16,
        "word_embed_proj_dim": 12,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "init_std": 0.3,
    },
    "phi": TINY,
    "phi3": TINY,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "qwen2_moe": GROUPED | {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
    "stablelm": TINY,
}
NO_DEFAULT = {"cohere": ["q_proj"], "granite": ["q_proj"], "hyperclovax": ["q_proj"], "phi3": ["qkv_proj"]}
NO_DEFAULT |= {"qwen2_moe": ["shared_expert_gate", "down_proj"]}
# Both forms of embeddings, whatever the architecture's own is.
TIED = {"llama": True, "qwen2": True, "gpt2": False, "gemma": False, "opt": False}
# The others compute a part in float32 (a norm, attention, experts), whose last digit depends on rounding.
IN_FLOAT64 = "bloom codegen falcon gpt2 gpt_bigcode gpt_neox opt phi stablelm".split()

RANK, ALPHA, TASKS = 2, 3, 3
LENGTHS = {0: (9, 4), 1: (6,), 2: (2, 7)}  # tokens of each task's documents


def tiny(architecture: str, **changes) -> nn.Module:
    """The same weights for the same configuration."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **CONFIGS[architecture] | changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    if model.config._experts_implementation is not None:
        model.set_experts_implementation("eager")  # the grouped product knows no float64
    with torch.no_grad():  # biases, and norms that start at a constant, count as well
        for p in model.parameters():
            if p.dim() == 1:
                p += 0.2 * torch.randn_like(p)
    return model.double()


def mixed_batch() -> dict[str, torch.Tensor]:
    """Documents of every task in no order, padded on the right; the first of them has a prompt of two."""
    torch.manual_seed(1)
    rows = [(task, torch.randint(3, 50, (n,))) for task, lengths in LENGTHS.items() for n in lengths]
    rows = [rows[i] for i in (3, 0, 2, 4, 1)]
    ids = nn.utils.rnn.pad_sequence([ids for _, ids in rows], batch_first=True)
    labels = nn.utils.rnn.pad_sequence([ids for _, ids in rows], batch_first=True, padding_value=IGNORE)
    labels[1, :2] = IGNORE
    return {"input_ids": ids, "labels": labels, "task": torch.tensor([task for task, _ in rows])}


def pefts(base: nn.Module, targets, lora: dict[str, LowRank]) -> nn.Module:
    """PEFT's model of one task."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets)
    peft = get_peft_model(base, config).double().eval()
    adapted = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default")
        for name, _ in peft.named_modules()
        if name.endswith(".lora_A.default")
    }
    assert adapted == set(lora)
    with torch.no_grad():
        for layer, (A, B) in lora.items():
            module = peft.base_model.model.get_submodule(layer)
            module.lora_A["default"].weight.copy_(A)
            module.lora_B["default"].weight.copy_(B)
    return peft


@pytest.mark.parametrize("which", ["default", "all-linear"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_mixed_batch_equals_a_loop_over_tasks_with_pefts_adapters(architecture, which):
    """NLL of each document, and the gradients of A and B, in a batch of three tasks and five lengths."""
    changes = {"tie_word_embeddings": TIED[architecture]} if architecture in TIED else {}
    targets = NO_DEFAULT.get(architecture) if which == "default" else which
    base = tiny(architecture, **changes)
    # Where experts are tensors, not layers, this PEFT's own default adapts nothing and its all-linear them.
    theirs = list(find_targets(base, targets)) if architecture == "mixtral" else targets
    model = HierarchicalLoRA(
        base, list("abc"), [1] * TASKS, 1, 0.0, RANK, ALPHA, targets, parameterization="centered"
    ).double()
    random_factors(model)
    batch = mixed_batch()
    weights = torch.linspace(0.5, 2, len(batch["task"]), dtype=torch.float64)
    nll = model.document_nll(batch)
    (nll * weights).sum().backward()
    gradients = model.adapters.stored.grad.to_dense()
    close = {"rtol": 1e-9, "atol": 1e-11} if architecture in IN_FLOAT64 else {"rtol": 1e-4, "atol": 1e-5}
    for task, name in enumerate("abc"):
        peft = pefts(tiny(architecture, **changes), theirs, model.tasks[name])
        for row in (batch["task"] == task).nonzero()[:, 0].tolist():
            scored = batch["labels"][row] != IGNORE
            ids = batch["input_ids"][row, : scored.nonzero().max() + 1]  # no padding
            logits = peft(input_ids=ids[None]).logits[0, :-1]
            expected = nn.functional.cross_entropy(logits, batch["labels"][row, 1 : len(ids)], reduction="sum")
            torch.testing.assert_close(nll[row].detach(), expected.detach(), **close)
            (expected * weights[row]).backward()
        for layer, (A, B) in model.adapters.layout.factors(gradients[task]).items():
            module = peft.base_model.model.get_submodule(layer)
            torch.testing.assert_close(A, module.lora_A["default"].weight.grad, **close)
            torch.testing.assert_close(B, module.lora_B["default"].weight.grad, **close)
            assert A.abs().max() > 1e-6


def test_every_way_of_naming_layers_is_read_as_peft_reads_it():
    for patterns in (
        ["q_proj"],
        ["self_attn.q_proj", "fc1"],
        ["model.decoder.layers.0.fc2"],
        r".*\.0\..*_proj",
        r".*layers\.[01]\.fc\d",
        "ALL-LINEAR",
    ):
        peft = get_peft_model(tiny("opt"), LoraConfig(r=1, target_modules=patterns))
        theirs = {name.removesuffix(".lora_A.default") for name, _ in peft.named_modules() if "lora_A." in name}
        ours = find_targets(tiny("opt"), patterns)
        assert theirs == {f"base_model.model.{name}" for name in ours}
    # PEFT wants the whole name of a single one, too.
    with pytest.raises(UserError, match="no linear layer"):
        find_targets(tiny("opt"), "q_proj")


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (["q_proj", "lm_head"], "lm_head, a Linear"),
        (["embed_tokens"], "embed_tokens, a Embedding"),
        (r".*decoder.*norm", "final_layer_norm"),
    ],
)
def test_what_cannot_be_adapted_is_told_and_not_left_out(patterns, told):
    with pytest.raises(UserError, match=told):
        find_targets(tiny("opt", tie_word_embeddings=False), patterns)


class Experts(nn.Module):
    """A feed-forward layer that sends each token to one of two, as linear layers of their own."""

    def __init__(self):
        super().__init__()
        self.router, self.experts = nn.Linear(16, 2), nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, -2)
        choice, out = self.router(flat).argmax(-1), torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            out[choice == i] = expert(flat[choice == i])
        return out.view(x.shape)


def test_a_routed_expert_is_refused_and_what_is_around_it_is_not():
    model = tiny("llama")
    torch.manual_seed(0)
    model.model.layers[0].mlp = Experts().double()
    before = [module.training for module in model.modules()]
    for patterns in (["experts.0"], "all-linear"):
        with pytest.raises(UserError, match=r"layers\.0\.mlp\.experts\.0 does not see .* row by row") as error:
            find_targets(model, patterns)
        assert "\n" not in str(error.value)
    assert len(find_targets(model, ["router", "q_proj", "v_proj"])) == 5
    assert [module.training for module in model.modules()] == before
    assert not any(module._forward_hooks for module in model.modules())


def test_layers_that_no_text_passes_or_that_give_no_tensor_are_refused():
    """BART's decoder has attention to an encoder that is not there; a hook of DeepSeek's is never called."""
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2}
    bart = AutoModelForCausalLM.from_config(AutoConfig.for_model("bart", **shape, decoder_ffn_dim=8))
    with pytest.raises(UserError, match=r"encoder_attn\.v_proj does not see"):
        find_targets(bart, None)
    assert len(find_targets(bart, ["self_attn.q_proj", "self_attn.v_proj"])) == 2
    model = tiny("llama")
    up = model.model.layers[0].mlp.up_proj
    plain = up.forward
    up.forward = lambda x: (plain(x), None)
    model.model.layers[0].mlp.forward = lambda x: up(x)[0][..., :16]
    with pytest.raises(UserError, match="up_proj does not see"):
        find_targets(model, ["up_proj"])


def test_rows_that_are_not_the_documents_are_refused_in_a_forward_too():
    lora = LowRank(torch.ones(3, 2, 4), torch.ones(3, 5, 2))
    for shape in ((7,), (4, 3), (6, 2)):
        with pytest.raises(UserError, match="3 documents"):
            add_low_rank(torch.zeros(*shape, 5), torch.ones(*shape, 4), lora, 1.0)


def test_a_dropout_that_is_on_does_not_disturb_the_check():
    assert len(find_targets(tiny("gpt2").train(), None)) == 2


@pytest.mark.parametrize(("scale", "cap"), [(0.3, None), (1.0, 1.5), (2.5, 0.7)])
def test_a_changed_logits_nll_and_gradient_equal_torchs(scale, cap):
    torch.manual_seed(0)
    hidden = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    targets = torch.randint(0, 7, (11,))
    ours = token_nll(hidden, weight, bias, targets, scale, cap)
    logits = scale * (hidden @ weight.T + bias)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    theirs = nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    (gradient,), (expected,) = (torch.autograd.grad(nll.prod(), hidden) for nll in (ours, theirs))
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-13)


def test_a_head_that_does_more_than_scale_and_cap_is_refused():
    bert = AutoModelForCausalLM.from_config(AutoConfig.for_model("bert", **TINY, is_decoder=True))
    with pytest.raises(UserError, match=r"'bert' changes its logits"):
        Backbone(bert)


@pytest.mark.parametrize(("logits_scaling", "scale"), [(4.0, 0.25), (1.0, 1.0)])
def test_granites_factor_divides(logits_scaling, scale):
    head = Backbone(tiny("granite", logits_scaling=logits_scaling)).head
    assert (head.scale, head.cap) == (scale, None)


def test_llama_4_is_its_own_base_and_is_taken_all_the_same():
    torch.manual_seed(0)
    shape = GROUPED | {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 24}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama4_text", **shape)).eval()
    ids = torch.arange(12).view(2, 6) + 3
    hidden = Backbone(model).hidden(ids)
    torch.testing.assert_close(model.lm_head(hidden), model(ids).logits)
    with pytest.raises(UserError, match="router does not see"):  # it gives back two tensors
        find_targets(model, "all-linear")
