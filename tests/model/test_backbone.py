"""What a backbone requires of its model, and how it runs it: frozen, compiled, in the model's dtype."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM, XLMConfig, XLMWithLMHeadModel

from bora.errors import UserError
from bora.model.backbone import Backbone
from bora.model.compiled import check_blocks
from bora.model.targets import find_targets
from tests.conftest import hierarchical, random_factors, tiny_opt
from tests.model.test_architectures import GROUPED, TINY, tiny

IDS = torch.arange(40).view(2, 20) % 30 + 5


def test_a_model_that_reads_ahead_is_refused():
    model = tiny("llama")
    model.model.layers[0].register_forward_hook(lambda layer, args, out: out + out.mean(1, keepdim=True))
    masked = XLMWithLMHeadModel(XLMConfig(vocab_size=96, emb_dim=16, n_layers=2, n_heads=2, causal=False))
    for one in (model, masked):
        with pytest.raises(UserError, match="reads the whole text"):
            Backbone(one)


def test_the_backbone_stays_frozen_in_evaluation_mode_without_a_graph_below_the_first_update():
    backbone, seen = Backbone(tiny_opt().train(), r".*layers\.1\..*(q|v)_proj").train(), {}
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.parameters())
    for i, layer in enumerate(backbone.decoder.decoder.layers):
        layer.register_forward_hook(lambda _, args, out, i=i: seen.update({i: out[0].requires_grad}))
    theta = torch.zeros(backbone.layout.n_parameters, requires_grad=True)
    backbone.nll({"input_ids": IDS, "labels": IDS}, theta)
    assert seen == {0: False, 1: True}


def test_equal_blocks_are_compiled_once_even_if_sizes_coincide(monkeypatch):
    compile = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: compile(self, backend="eager", **how))
    torch._dynamo.reset()
    counters.clear()
    backbone = Backbone(tiny("llama", num_hidden_layers=10), None, 4, compile=True)
    theta = torch.zeros(6, backbone.layout.n_parameters, requires_grad=True)
    for documents, tokens in ((4, 16), (5, 7), (6, 16)):  # 4 is also the rank, 16 the width
        ids = IDS[:1, :tokens].expand(documents, tokens)
        backbone.nll({"input_ids": ids, "labels": ids}, theta[:documents]).sum().backward()
    assert counters["stats"]["unique_graphs"] == 1
    for documents, of_batch in ((3, theta[0]), (1, theta[:1])):  # newer versions of torch compile for each of them
        ids = IDS[:1].expand(documents, -1)
        backbone.nll({"input_ids": ids, "labels": ids}, of_batch).sum().backward()
    assert counters["stats"]["unique_graphs"] in ((3,) if torch.__version__ >= "2.13" else (2, 3))


def test_a_block_that_torch_compiles_wrongly_is_refused():
    theta, x = torch.ones(3, requires_grad=True), torch.arange(24.0).view(2, 4, 3)
    idle = torch.ones(3, requires_grad=True)  # its gradient is 0, as q_proj's is for a text of one token

    class Block(nn.Module):
        def __init__(self, error: float):
            super().__init__()
            self.error = error
            self.compile(backend="eager")

        def forward(self, x):
            return x * theta + 0 * idle + (self.error * x**2 if torch.compiler.is_compiling() else 0)

    right, wrong = Block(0.0), Block(0.01)
    check_blocks(nn.ModuleList([right]), lambda block: [idle, theta], lambda: right(x))
    with pytest.raises(
        UserError, match=r"compiles a Block wrongly, its gradient is .* % off; set model\.compile=false"
    ):
        check_blocks(nn.ModuleList([right, wrong]), lambda block: [theta], lambda: wrong(right(x)))


@pytest.mark.processes  # starts a compiler, for half a minute
def test_a_compiled_backbone_has_the_same_objective_and_gradients():
    found = []
    for compile in (False, True):
        model = hierarchical(tiny_opt(), ["a", "b"], [1, 1], 40, 1.0, how={"compile": compile})
        random_factors(model)
        for width in (20, 13):  # lengths differ by batch
            batch = {"input_ids": IDS[:, :width], "labels": IDS[:, :width], "task": torch.tensor([1, 0])}
            objective = model.objective(batch | {"batches": 3})
            objective.loss.backward()
        with torch.no_grad():
            bare = model.nll(batch, "base")
        adapters = model.adapters
        found.append((objective.likelihood, bare, adapters.stored.grad.to_dense(), adapters.mean.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_a_head_that_does_more_than_scale_and_cap_is_refused():
    bert = AutoModelForCausalLM.from_config(AutoConfig.for_model("bert", **TINY, is_decoder=True))
    with pytest.raises(UserError, match=r"'bert' computes its logits"):
        Backbone(bert)


def test_hidden_states_may_have_another_dtype_than_the_head():
    shape = {"vocab_size": 50, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "residual_in_fp32": True}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **shape)).bfloat16()
    batch = {"input_ids": IDS, "labels": IDS}
    with torch.no_grad():
        found = Backbone(model, ["in_proj"]).nll(batch, None)
        whole = model(input_ids=IDS).logits.float()
    expected = nn.functional.cross_entropy(whole[:, :-1].mT, IDS[:, 1:], reduction="none").sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)


def test_llama_4_is_supported_although_it_is_its_own_base_model():
    torch.manual_seed(0)
    shape = GROUPED | {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 24}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama4_text", **shape)).eval()
    ids = torch.arange(12).view(2, 6) + 3
    hidden = Backbone(model, ["q_proj"]).hidden(ids)
    torch.testing.assert_close(model.lm_head(hidden), model(ids).logits)
    with pytest.raises(UserError, match="router does not process"):  # it returns two tensors
        find_targets(model, "all-linear")
