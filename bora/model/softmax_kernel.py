"""The kernel of bora.model.softmax, in its own file, since importing it needs Triton."""

import triton
import triton.language as tl


@triton.jit
def softmax_kernel(
    logits, targets, nll, n_columns, scale, cap, CAPPED: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr
):
    """Compute one row's NLL, and overwrite its logits with the gradient."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * n_columns
    target = tl.load(targets + row)
    of_target = tl.load(logits + target).to(tl.float32) * scale
    if CAPPED:
        of_target = cap * (2 * tl.sigmoid(2 * of_target / cap) - 1)
    top = -float("inf")
    total = 0.0
    for start in range(0, n_columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = tl.load(logits + column, mask=column < n_columns, other=0).to(tl.float32) * scale
        if CAPPED:
            z = cap * (2 * tl.sigmoid(2 * z / cap) - 1)
        z = tl.where(column < n_columns, z, -float("inf"))
        higher = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(z - higher), 0)
        top = higher
    log_normaliser = top + tl.log(total)
    tl.store(nll + row, log_normaliser - of_target)
    if GRADIENT:
        tl.debug_barrier()  # all threads must have read the target's logit before one overwrites it
        for start in range(0, n_columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            z = tl.load(logits + column, mask=column < n_columns, other=0).to(tl.float32) * scale
            slope = scale
            if CAPPED:
                tanh = 2 * tl.sigmoid(2 * z / cap) - 1
                z = cap * tanh
                slope = scale * (1 - tanh * tanh)
            p = tl.exp(z - log_normaliser)
            gradient = (p - tl.where(column == target, 1.0, 0.0)) * slope
            tl.store(logits + column, gradient.to(logits.dtype.element_ty), mask=column < n_columns)
