"""Norms fused into one operation compute the same as before."""

import pytest
import torch

from bora.model import norms
from bora.model.backbone import Backbone
from tests.model.test_architectures import tiny


def test_fused_norms_equal_transformers_own(monkeypatch):
    found, ids = [], torch.randint(1, 30, (2, 7))
    for fuses in (False, True):
        monkeypatch.setattr(norms, "can_fuse", lambda x, weight, fuses=fuses: fuses)
        torch.manual_seed(0)
        backbone = Backbone(tiny("llama"), rank=2)
        for name, parameter in backbone.model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.rand(parameter.shape))
        theta = (0.1 * torch.randn(2, backbone.layout.n_parameters)).requires_grad_()
        nll = backbone.nll({"input_ids": ids, "labels": ids}, theta)
        found.append((nll, *torch.autograd.grad(nll.sum(), theta)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("architecture", "plain"), [("llama", True), ("gemma2", False)])
def test_only_plain_norms_are_fused(architecture, plain):
    model = tiny(architecture)
    before = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    kinds = [type(norm) for norm in before]
    norms.fuse_norms(model)
    assert {type(norm) is not kind for norm, kind in zip(before, kinds, strict=True)} == {plain}
