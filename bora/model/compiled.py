"""Run a backbone's blocks compiled by torch, each once held to what it computes uncompiled."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes

from bora.errors import UserError

# How far a gradient may be off, by its norm; merged operations round elsewhere: up to 0.024 measured in bfloat16.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}


def compilation() -> AbstractContextManager[object]:
    """Compile what is run within where gradients are needed.

    Validation and test are short and would need a compilation of their own, so they run as they are.
    """
    if not torch.is_grad_enabled():
        return torch.compiler.set_stance("force_eager")
    # Else 16 documents under LoRAs of rank 16 would be compiled as one size, and 15 anew.
    return symbolic_shapes.patch(use_duck_shape=False)  # type: ignore[attr-defined]


def check_blocks(
    blocks: nn.ModuleList, factors: Callable[[nn.Module], list[Tensor]], run: Callable[[], object]
) -> None:
    """Compile blocks and hold their gradients to the uncompiled ones: torch compiles some models wrongly, with no error.

    Multi-query Falcon is one, in torch 2.13 (https://github.com/pytorch/pytorch/issues/188084).

    Args:
        blocks: whose `compile` was called.
        factors: what a block is differentiated by beside its input.
        run: calls each block with hidden states first.

    Raises:
        UserError: a gradient differs by more than rounding.
    """
    calls: list[tuple[nn.Module, tuple, dict]] = []
    hooks = [block.register_forward_pre_hook(lambda *call: calls.append(call), with_kwargs=True) for block in blocks]
    with torch.no_grad(), compilation():
        run()
    for hook in hooks:
        hook.remove()
    while calls:
        block, (hidden, *others), options = calls.pop(0)
        x = hidden.detach().requires_grad_()
        direction = torch.linspace(-1, 1, x.numel(), device=x.device).view(x.shape)

        def gradients() -> tuple[Tensor, ...]:
            output = block(x.clone(), *others, **options)  # noqa: B023
            output = output if isinstance(output, Tensor) else output[0]
            return torch.autograd.grad((output * direction).sum(), [x, *factors(block)])  # noqa: B023

        with torch.compiler.set_stance("force_eager"):
            expected = gradients()
        with compilation():
            found = gradients()
        apart = max(float((f - e).norm() / e.norm()) for e, f in zip(expected, found, strict=True))
        if not apart <= TOLERANCE[x.dtype]:
            raise UserError(
                f"model.compile=true: torch {torch.__version__} compiles a {type(block).__name__} wrongly, its gradient "
                f"is {100 * apart:.1f} % off; set model.compile=false"
            )
