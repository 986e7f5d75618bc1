"""The softmax of a chunk of logits on a GPU, as a Triton kernel that passes over them twice.

In torch's operations (bora.model.likelihood) it is nine passes, most of them over a float32 copy, and takes as long as
the two matrix products of a chunk together.
"""

import functools
import logging

import torch
from torch import Tensor

from bora.errors import first_line

log = logging.getLogger(__name__)


def can_fuse(hidden: Tensor) -> bool:
    """Return whether the kernel can be used: on a GPU, with Triton and a compiler installed."""
    return hidden.is_cuda and hidden.dtype != torch.float64 and _compiles(hidden.device)


@functools.cache
def _compiles(device: torch.device) -> bool:
    logits, targets = torch.zeros(1, 8, device=device), torch.zeros(1, dtype=torch.long, device=device)
    try:
        nll_and_gradient(logits, targets, 1.0, None, True)
    except Exception as error:  # Triton or its compiler is missing, or it does not support this GPU
        log.info("the softmax is torch's own, slower one: Triton cannot be used here (%s)", first_line(error))
        return False
    return True


def nll_and_gradient(logits: Tensor, targets: Tensor, scale: float, cap: float | None, gradient: bool) -> Tensor:
    """Return −log softmax(f(logits))[target] of each row, f(z) = cap · tanh(scale · z / cap); see bora.model.likelihood.

    Args:
        logits: [S, V], contiguous. With `gradient` they are overwritten by the gradient of each row's result.
        targets: [S].

    Returns:
        [S] float32, in nats.
    """
    from bora.model.softmax_kernel import softmax_kernel

    nll = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    with torch.cuda.device_of(logits):
        softmax_kernel[(len(logits),)](
            logits,
            targets,
            nll,
            logits.shape[1],
            scale,
            0.0 if cap is None else cap,
            CAPPED=cap is not None,
            GRADIENT=gradient,
            BLOCK=4096,
            num_warps=8,
        )
    return nll
