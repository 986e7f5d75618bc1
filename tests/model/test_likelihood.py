"""The likelihood and its handwritten gradient against torch's cross entropy and counts by hand."""

import pytest
import torch
from torch import nn

from bora.model import likelihood
from bora.model.likelihood import IGNORE, Head, document_nll, n_scored, token_nll


@pytest.mark.parametrize("chunk_elements", [7, 21, 10**6])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.3, None), (1.0, 1.5), (2.5, 0.7)])
def test_token_nll_and_its_gradient_equal_torchs_cross_entropy(scale, cap, chunk_elements, monkeypatch):
    monkeypatch.setattr(likelihood, "chunk_elements", lambda device: chunk_elements)
    torch.manual_seed(0)
    hidden = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    targets = torch.randint(0, 7, (11,))
    ours = token_nll(hidden, targets, Head(weight, bias, scale, cap))
    logits = scale * (hidden @ weight.T + bias)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    theirs = nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    (gradient,), (expected,) = (torch.autograd.grad(nll.prod(), hidden) for nll in (ours, theirs))
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-13)


def test_a_trainable_head_is_refused():
    with pytest.raises(ValueError, match="constant"):
        token_nll(torch.ones(2, 5), torch.zeros(2).long(), Head(torch.ones(7, 5, requires_grad=True), None))


def test_unscored_tokens_do_not_count_and_the_first_is_never_scored():
    labels = torch.tensor([[3, IGNORE, 4, 5], [IGNORE] * 4])
    assert n_scored(labels).tolist() == [2, 0]
    assert document_nll(torch.randn(2, 4, 3), labels, Head(torch.randn(9, 3), None))[1] == 0
