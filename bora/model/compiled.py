"""Run a backbone's blocks compiled by torch, after comparing each with its uncompiled self."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes

from bora.errors import UserError

# Largest error of a gradient relative to its norm. Merged operations round elsewhere: up to 0.043 measured in bfloat16.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}


def compilation() -> AbstractContextManager[object]:
    """Return a context that compiles the forwards run inside it if gradients are enabled.

    Validation and test are short and would need their own compilation, so they run uncompiled.
    """
    if not torch.is_grad_enabled():
        return torch.compiler.set_stance("force_eager")
    # Otherwise 16 documents under LoRAs of rank 16 would be compiled as one size, and 15 separately.
    return symbolic_shapes.patch(use_duck_shape=False)  # type: ignore[attr-defined]


def check_blocks(
    blocks: nn.ModuleList, factors: Callable[[nn.Module], list[Tensor]], run: Callable[[], object]
) -> None:
    """Compile blocks and compare their gradients with the uncompiled ones: torch silently compiles some models wrongly.

    Multi-query Falcon is one, in torch 2.13 (https://github.com/pytorch/pytorch/issues/188084).

    Args:
        blocks: blocks whose `compile` was called.
        factors: returns the tensors, besides its input, with respect to which to differentiate a block.
        run: a forward that calls each block with hidden states as its first argument.

    Raises:
        UserError: a gradient differs by more than rounding.
    """
    calls: list[tuple[nn.Module, tuple, dict]] = []
    hooks = [block.register_forward_pre_hook(lambda *call: calls.append(call), with_kwargs=True) for block in blocks]
    with torch.no_grad(), compilation():
        run()
    for hook in hooks:
        hook.remove()
    for block, call, options in calls:
        with torch.compiler.set_stance("force_eager"):
            expected = _gradients(block, call, options, factors(block))
        with compilation():
            found = _gradients(block, call, options, factors(block))
        for f, e in zip(found, expected, strict=True):
            apart, norm = float((f - e).norm()), float(e.norm())
            if not apart <= TOLERANCE[e.dtype] * norm:  # so that NaN fails too
                raise UserError(
                    f"model.compile=true: torch {torch.__version__} compiles a {type(block).__name__} wrongly, its "
                    f"gradient is {100 * apart / max(norm, 1e-30):.1f} % off; set model.compile=false"
                )


def _gradients(block: nn.Module, call: tuple, options: dict, factors: list[Tensor]) -> tuple[Tensor, ...]:
    """Differentiate a weighted sum of a block's output, with weights from −1 to 1, by its input and its factors."""
    x = call[0].detach().requires_grad_()
    output = block(x.clone(), *call[1:], **options)
    output = output if isinstance(output, Tensor) else output[0]
    weights = torch.linspace(-1, 1, output.numel(), device=output.device).view(output.shape)
    return torch.autograd.grad((output * weights).sum(), [x, *factors])
