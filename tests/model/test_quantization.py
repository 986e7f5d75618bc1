"""A quantised backbone computes the same as plain layers with its dequantised weights."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bora.config.compose import compose_config
from bora.errors import UserError
from bora.model.backbone import Backbone
from bora.model.loading import load_backbone
from bora.model.quantization import QUANTIZATIONS, QuantisedLinear, quantise
from tests.conftest import hierarchical, random_factors
from tests.model.test_architectures import ALPHA, RANK, TASKS, mixed_batch, tiny


def quantised(architecture: str, kind: str) -> tuple[nn.Module, nn.Module]:
    """Return a quantised model, and one with its dequantised weights in plain layers; both in float32."""
    model, plain = tiny(architecture).float(), tiny(architecture).float()
    quantise(model, kind)
    for name, layer in model.named_modules():
        if isinstance(layer, QuantisedLinear):
            weight, target = layer.dequantised(), plain.get_submodule(name)
            weight = weight.T if isinstance(target, Conv1D) else weight
            difference = (weight - target.weight).norm() / target.weight.norm()
            assert 0 < difference < {"int8": 0.01, "nf4": 0.15}[kind]
            with torch.no_grad():
                target.weight.copy_(weight)
    return model, plain


KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}"))
    for kind, package in QUANTIZATIONS.items()
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["opt", "gpt2", "llama", "gemma2"])
def test_nll_and_gradients_over_a_quantised_backbone_equal_those_over_its_dequantised_weights(architecture, kind):
    found, batch = [], mixed_batch()
    for base in quantised(architecture, kind):
        model = hierarchical(base, list("abc"), [1] * TASKS, 1, 1.0, RANK, ALPHA, "all-linear")
        random_factors(model)
        nll = model.nll(batch)
        nll.sum().backward()
        found.append((nll, model.nll(batch, "base"), model.adapters.stored.grad.to_dense()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_layer_is_small_and_keeps_no_float_weight_for_the_backward(kind):
    torch.manual_seed(0)
    plain = nn.Linear(256, 128)
    layer = QuantisedLinear(plain, kind)
    weight = layer.dequantised()
    if kind == "nf4":
        bnb = pytest.importorskip("bitsandbytes.functional")
        theirs = bnb.dequantize_4bit(*bnb.quantize_4bit(plain.weight.detach(), blocksize=64, quant_type="nf4"))
        torch.testing.assert_close(weight, theirs)
    kept = (layer.quantised.qdata, layer.quantised.scale) if kind == "int8" else layer.buffers()
    bytes_kept = sum(t.untyped_storage().nbytes() for t in kept)
    assert bytes_kept <= {"int8": 1.1, "nf4": 0.65}[kind] * weight.numel()
    x, saved = torch.randn(2, 5, 256, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        y = layer(x)
    assert not saved
    y += 1  # as the adapters do
    torch.testing.assert_close(y - 1, nn.functional.linear(x, weight, layer.bias), rtol=1e-5, atol=1e-5)
    y.sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand_as(x))


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_quantises_all_but_the_head_and_the_embeddings(kind):
    cfg, _ = compose_config(["model=opt_mini", f"model.quantization={kind}", "model.dtype=bfloat16"])
    model = load_backbone(cfg.model, "cpu", 128).model
    assert type(model.lm_head) is nn.Linear
    assert model.dtype == torch.bfloat16
    plain = [n for n, m in model.named_modules() if type(m) is nn.Linear]
    assert plain == ["lm_head"]
    backbone = Backbone(model)
    nll = backbone.head.logits(backbone.hidden(torch.arange(8)[None])).logsumexp(-1)
    assert nll.isfinite().all()


def test_an_impossible_quantisation_is_refused(monkeypatch):
    with pytest.raises(UserError, match="no plain linear layers"):
        quantise(tiny("falcon"), "int8")  # its layers are a subclass of nn.Linear
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package bitsandbytes: pip install bitsandbytes"):
        quantise(tiny("opt"), "nf4")
