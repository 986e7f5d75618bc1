"""Which layers get a LoRA: names are read as in PEFT; a layer that cannot have a LoRA for each document is refused."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from bora.errors import UserError
from bora.model.lora import LowRank, add_low_rank
from bora.model.targets import find_targets
from tests.conftest import hierarchical, merged, random_factors, tiny_opt
from tests.model.test_architectures import TINY, tiny


def test_patterns_without_a_match_and_architectures_without_a_default_are_refused():
    model = tiny_opt()
    assert len(find_targets(model, None)) == 4  # q_proj and v_proj of two layers
    with pytest.raises(UserError, match=r"matches no linear layer.*fc1"):
        find_targets(model, ["proj"])
    with pytest.raises(UserError, match=r"nosuch is no linear layer of the model; it has .*fc1"):
        find_targets(model, ["q_proj", "nosuch"])
    model.config.model_type = "novel"
    with pytest.raises(UserError, match="no default for the architecture 'novel'"):
        find_targets(model, None)


def test_layer_names_and_patterns_are_read_as_in_peft():
    names = ["q_proj"], ["self_attn.q_proj", "fc1"], ["model.decoder.layers.0.fc2"]
    for patterns in (*names, r".*\.0\..*_proj", r".*layers\.[01]\.fc\d", "ALL-LINEAR"):
        peft = get_peft_model(tiny("opt"), LoraConfig(r=1, target_modules=patterns))
        theirs = {name.removesuffix(".lora_A.default") for name, _ in peft.named_modules() if "lora_A." in name}
        ours = find_targets(tiny("opt"), patterns)
        assert theirs == {f"base_model.model.{name}" for name in ours}
    # A single string must be a whole name, as in PEFT.
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
def test_a_match_that_cannot_be_adapted_is_refused_and_not_skipped(patterns, told):
    with pytest.raises(UserError, match=told):
        find_targets(tiny("opt", tie_word_embeddings=False), patterns)


class Experts(nn.Module):
    """A feed-forward layer that routes each token to one of two linear layers."""

    def __init__(self):
        super().__init__()
        self.router, self.experts = nn.Linear(16, 2), nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, -2)
        choice, out = self.router(flat).argmax(-1), torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            out[choice == i] = expert(flat[choice == i])
        return out.view(x.shape)


def test_a_routed_expert_is_refused_but_the_layers_around_it_are_not():
    model = tiny("llama")
    torch.manual_seed(0)
    model.model.layers[0].mlp = Experts().double()
    before = [module.training for module in model.modules()]
    for patterns in (["experts.0"], "all-linear"):
        with pytest.raises(UserError, match=r"layers\.0\.mlp\.experts\.0 does not process a batch row by row") as error:
            find_targets(model, patterns)
        assert "\n" not in str(error.value)
    others = "down_proj,gate_proj,k_proj,o_proj,q_proj,router,up_proj,v_proj"
    assert str(error.value).endswith(f"name other layers: lora.target_modules=[{others}]")
    assert len(find_targets(model, ["router", "q_proj", "v_proj"])) == 5
    assert [module.training for module in model.modules()] == before
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layers_input_may_have_an_extra_axis():
    """DeepSeek's kv_b_proj gets [R, 1, T, n]; compare with merged weights, one document at a time."""
    sizes = dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 4)
    shape = TINY | sizes | {"num_hidden_layers": 1, "first_k_dense_replace": 1}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("deepseek_v3", **shape)).eval()
    model = hierarchical(copy.deepcopy(base), ["a", "b"], [1, 1], 1, 1.0, targets=["kv_b_proj"])
    random_factors(model)
    ids = torch.arange(3, 15).view(2, 6)
    nll = model.nll({"input_ids": ids, "labels": ids, "task": torch.tensor([1, 0])})
    for row, task in enumerate("ba"):
        plain = merged(copy.deepcopy(base), model.tasks[task], model.backbone.scale)
        logits = plain(input_ids=ids[row : row + 1]).logits[0, :-1]
        torch.testing.assert_close(nll[row], nn.functional.cross_entropy(logits, ids[row, 1:], reduction="sum"))


def test_layers_that_are_never_called_or_return_no_tensor_are_refused():
    """BART's decoder attends to an encoder that is absent; a hook of DeepSeek's is never called."""
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2}
    bart = AutoModelForCausalLM.from_config(AutoConfig.for_model("bart", **shape, decoder_ffn_dim=8))
    with pytest.raises(UserError, match=r"encoder_attn\.v_proj does not process"):
        find_targets(bart, None)
    assert len(find_targets(bart, ["self_attn.q_proj", "self_attn.v_proj"])) == 2
    model = tiny("llama")
    up = model.model.layers[0].mlp.up_proj
    plain = up.forward
    up.forward = lambda x: (plain(x), None)
    model.model.layers[0].mlp.forward = lambda x: (up(x)[0] if isinstance(up(x), tuple) else up(x))[..., :16]
    with pytest.raises(UserError, match="up_proj does not process"):
        find_targets(model, ["up_proj"])
    up.forward = lambda x: plain(x)[..., :16]  # as DeepSeek-V4's block layers, which do not compute W x
    with pytest.raises(UserError, match="up_proj does not process"):
        find_targets(model, ["up_proj"])


def test_rows_that_are_not_the_documents_are_refused_in_a_forward_too():
    lora = LowRank(torch.ones(3, 2, 4), torch.ones(3, 5, 2))
    for shape in ((7,), (4, 3), (6, 2)):
        with pytest.raises(UserError, match="3 documents"):
            add_low_rank(torch.zeros(*shape, 5), torch.ones(*shape, 4), lora, 1.0)


def test_active_dropout_does_not_disturb_the_check_of_rows():
    assert len(find_targets(tiny("gpt2").train(), None)) == 2
