"""The likelihood of documents under a frozen language model head (eq. 2 and 4), in nats.

The [tokens, vocabulary] logits are the largest tensor of a step by far. They are never held
whole: a chunk of scored positions at a time is turned into its negative log-likelihood and, while
the chunk is at hand, into the gradient with respect to the hidden states. That is possible because
each token's gradient is a fixed vector (p − e_target) W, scaled later by what flows in.
"""

import torch
from torch import Tensor, nn

IGNORE = -100  # label of a token that is not scored: padding, prompt
CHUNK_ELEMENTS = 2**23  # logits held at a time; 32 MiB in float32


class _TokenNLL(torch.autograd.Function):
    """−log softmax(h Wᵀ + b)[target] for each row of h; W and b are constants."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        accumulate = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        nll = torch.empty(len(hidden), dtype=accumulate, device=hidden.device)
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wants_gradient else None
        chunk = max(1, CHUNK_ELEMENTS // len(weight))
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            target = targets[rows, None]
            logits = nn.functional.linear(hidden[rows], weight, bias).to(accumulate)
            top, logit = logits.amax(dim=1, keepdim=True), logits.gather(1, target)
            # In place and once each: passes over [chunk, V] are what this costs beside the products.
            unnormalised = logits.sub_(top).exp_()
            z = unnormalised.sum(dim=1, keepdim=True)
            nll[rows] = (z.log() + top - logit).squeeze(1)
            if wants_gradient:
                unnormalised.scatter_add_(1, target, -z)  # z (p − e_target)
                gradient[rows] = (unnormalised.to(weight.dtype) @ weight).div_(z)
        if wants_gradient:
            ctx.save_for_backward(gradient)
        return nll

    @staticmethod
    def backward(ctx, grad_nll: Tensor):
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_nll[:, None]).to(gradient.dtype), None, None, None


def token_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target token, in nats.

    Args:
        hidden: [S, H] last hidden states, one row a scored position.
        weight: [V, H] the head's weight, frozen.
        bias: [V] or None, frozen.
        targets: [S] token ids.

    Returns:
        [S] nats; float32, or float64 where `hidden` is.

    Raises:
        ValueError: the head is trainable; its gradient is not computed here.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ValueError("token_nll treats the head as a constant, but it requires a gradient")
    return _TokenNLL.apply(hidden, weight, bias, targets)


def document_nll(hidden: Tensor, labels: Tensor, head: nn.Linear) -> Tensor:
    """−Σ_i log p(w_{i+1} | w_{1:i}) over the scored tokens of each document (eq. 2), in nats.

    Args:
        hidden: [R, T, H] last hidden states of R documents.
        labels: [R, T] the token ids themselves (not shifted), IGNORE where a token is not scored.
        head: the frozen output layer, H → V.

    Returns:
        [R] nats, one number a document; 0 for a document without scored tokens.
    """
    targets = labels[:, 1:]  # position t predicts token t + 1
    scored = targets != IGNORE
    nll = token_nll(hidden[:, :-1][scored], head.weight, head.bias, targets[scored])
    rows = scored.nonzero()[:, 0]
    return nll.new_zeros(len(labels)).index_add(0, rows, nll)


def n_scored(labels: Tensor) -> Tensor:
    """[R] the number of scored tokens of each document; the first token is never scored."""
    return (labels[:, 1:] != IGNORE).sum(dim=1)
