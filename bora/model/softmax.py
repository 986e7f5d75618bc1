"""The softmax of a chunk of logits on a GPU, in two passes over them: a kernel in Triton.

Written with torch's operations (bora.model.likelihood) it is nine passes, most of them over a float32 copy: as long as
the two matrix products beside it together.
"""

import functools
import importlib.util
import os
import shutil

import torch
from torch import Tensor


def can_fuse(hidden: Tensor) -> bool:
    """Tell whether the kernel can be used: on an NVIDIA or AMD GPU with Triton and the C compiler that it needs."""
    return hidden.is_cuda and hidden.dtype != torch.float64 and _has_triton()


@functools.cache
def _has_triton() -> bool:
    compilers = (os.environ.get("CC", "gcc"), "gcc", "clang")
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, compilers))


def nll_and_gradient(logits: Tensor, targets: Tensor, scale: float, cap: float | None, gradient: bool) -> Tensor:
    """Return −log softmax(f(logits))[target] of each row, f(z) = cap · tanh(scale · z / cap); see bora.model.likelihood.

    Args:
        logits: [S, V], contiguous. With `gradient` they become the gradient of each row's result, in their own dtype.
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
