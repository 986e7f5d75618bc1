"""The likelihood of documents under a frozen language model head (eq. 2 and 4), in nats.

The [tokens, vocabulary] logits are by far the largest tensor of a step. They are never in memory
as a whole: one chunk of scored positions at a time is turned into its negative log-likelihood and, in the
same pass, into the gradient with respect to the hidden states. That is possible because
each token's gradient is a fixed vector (p − e_target) W, which the backward only scales.

Some architectures change the logits z = W h + b once more: Cohere and Granite by a constant factor s, Gemma
by a soft cap c. The softmax then gets c · tanh(s z / c), whose slope is s (1 − tanh²).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bora.model.softmax import can_fuse, nll_and_gradient

IGNORE = -100  # label of a token that is not scored: padding, prompt


class Head(NamedTuple):
    """The output layer, H → V, and how the architecture changes its logits.

    Attributes:
        weight: [V, H], frozen.
        bias: [V] or None, frozen.
        scale: s, the factor of the logits.
        cap: c, the soft bound of their absolute value; None for no bound.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits […, V] of last hidden states […, H]."""
        z = self.scale * nn.functional.linear(hidden, self.weight, self.bias)
        return z if self.cap is None else self.cap * torch.tanh(z / self.cap)


def chunk_elements(device: torch.device) -> int:
    """Return how many logits to compute at a time.

    On a CPU, as many as about fit into its caches. On a GPU, where each chunk costs kernel launches, a 256th of its
    memory in bytes, at most 2²⁷ (256 MiB in bfloat16), beyond which nothing is gained. Not a share of the free
    memory: a run's sums would then depend on what else is running.
    """
    if device.type != "cuda":
        return 2**23
    return min(2**27, torch.cuda.get_device_properties(device).total_memory // 256)


def _accumulator(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _chunk_nll(hidden: Tensor, targets: Tensor, head: Head, gradient: Tensor | None) -> Tensor:
    """Return the NLL of a chunk's rows and write their gradient into `gradient`, if there is one.

    This is a function so that a chunk's logits are freed before the next ones are made.
    """
    weight, bias, scale, cap = head
    logits = nn.functional.linear(hidden, weight, bias)
    if can_fuse(hidden):
        nll = nll_and_gradient(logits, targets, scale, cap, gradient is not None)
        if gradient is not None:
            torch.mm(logits, weight, out=gradient)
        return nll
    target = targets[:, None]
    logits = logits.to(_accumulator(hidden))
    if scale != 1:
        logits.mul_(scale)
    slope = None  # the cap's derivative
    if cap is not None:
        tanh = logits.div_(cap).tanh_()
        if gradient is not None:
            slope = 1 - tanh.square()
        logits = tanh.mul_(cap)
    top, logit = logits.amax(dim=1, keepdim=True), logits.gather(1, target)
    # In place and once each: passes over [chunk, V] are the cost besides the matrix products.
    unnormalised = logits.sub_(top).exp_()
    z = unnormalised.sum(dim=1, keepdim=True)
    nll = z.log() + top - logit
    if gradient is not None:
        unnormalised.scatter_add_(1, target, -z)  # z (p − e_target)
        if slope is not None:
            unnormalised.mul_(slope)
        gradient.copy_((unnormalised.to(weight.dtype) @ weight).div_(z if scale == 1 else z / scale))
    return nll.squeeze(1)


class _TokenNLL(torch.autograd.Function):
    """−log softmax(logits)[target] for each row of `hidden`; the head is a constant."""

    @staticmethod
    def forward(ctx, hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
        nll = torch.empty(len(hidden), dtype=_accumulator(hidden), device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        chunk = max(1, chunk_elements(hidden.device) // len(head.weight))
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            nll[rows] = _chunk_nll(hidden[rows], targets[rows], head, None if gradient is None else gradient[rows])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return nll

    @staticmethod
    def backward(ctx, grad_nll: Tensor):
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_nll[:, None]).to(gradient.dtype), None, None


def token_nll(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Return the negative log-likelihood of each target token, in nats.

    Args:
        hidden: [S, H] last hidden states, one row for each scored position.
        targets: [S] token ids.
        head: the output layer, frozen.

    Returns:
        [S] nats; float32, or float64 if `hidden` is.

    Raises:
        ValueError: the head requires a gradient, which is not computed here.
    """
    if head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad):
        raise ValueError("token_nll treats the head as a constant, but it requires a gradient")
    return _TokenNLL.apply(hidden, head, targets)


def document_nll(hidden: Tensor, labels: Tensor, head: Head, scored: Tensor | None = None) -> Tensor:
    """Return −Σ_i log p(w_{i+1} | w_{1:i}) over the scored tokens of each document (eq. 2), in nats.

    Args:
        hidden: [R, T, H] last hidden states of R documents.
        labels: [R, T] the token ids themselves (not shifted), IGNORE for tokens that are not scored.
        head: the output layer, frozen.
        scored: [S] from `scored_places`; None computes it, which waits for a GPU.

    Returns:
        [R] nats, one number for each document; 0 for a document without scored tokens.
    """
    if scored is None:
        scored = scored_places(labels)
    # Position t predicts token t + 1.
    nll = token_nll(hidden.flatten(0, 1).index_select(0, scored - 1), labels.flatten().index_select(0, scored), head)
    return nll.new_zeros(len(labels)).index_add(0, scored // labels.shape[1], nll)


def scored_places(labels: Tensor) -> Tensor:
    """Find the scored tokens of labels [R, T]: their places in [R · T], ascending; a first token is never scored."""
    scored = labels != IGNORE
    scored[:, 0] = False
    return scored.flatten().nonzero()[:, 0]


def n_scored(labels: Tensor) -> Tensor:
    """Count the scored tokens of each document, [R]; the first token is never scored."""
    return (labels[:, 1:] != IGNORE).sum(dim=1)
