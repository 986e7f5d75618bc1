"""The GPU's kernel against torch's operations, on a GPU or interpreted (make test-kernel)."""

import os

import pytest
import torch

from bora.model import likelihood
from bora.model.likelihood import Head, token_nll

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
V = 5003  # more than a block, and not a multiple of one


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.3, None), (1.0, 1.5), (2.5, 0.7)])
def test_the_kernel_equals_torchs_operations(scale, cap, dtype, apart, monkeypatch):
    torch.manual_seed(0)
    shapes = [(11, 8), (V, 8), (V,)]
    hidden, weight, bias = (torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes)
    targets, found = torch.randint(0, V, (11,), device=DEVICE), []
    monkeypatch.setattr(likelihood, "chunk_elements", lambda device: 4 * V)
    for fused in (True, False):
        monkeypatch.setattr(likelihood, "can_fuse", lambda hidden, fused=fused: fused)
        leaf = hidden.clone().requires_grad_()
        nll = token_nll(leaf, targets, Head(weight, bias, scale, cap))
        found.append((nll.detach(), *torch.autograd.grad(nll.sum(), leaf)))
        with torch.no_grad():
            torch.testing.assert_close(token_nll(hidden, targets, Head(weight, bias, scale, cap)), found[-1][0])
    (nll, gradient), (expected_nll, expected) = found
    torch.testing.assert_close(nll, expected_nll, rtol=1e-5, atol=1e-5)
    assert (gradient - expected).norm() <= apart * expected.norm()
