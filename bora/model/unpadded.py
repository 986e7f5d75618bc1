"""Tell transformers that a batch needs only the causal mask, which it would otherwise check on the GPU.

Padding is on the right, where no real token sees it, and a row is one document. transformers does not know that, so in
every forward it checks whether positions start again within a row, and with some models whether a mask is all ones. The
check waits for all of the GPU's queued work. While a CUDA graph is recorded it is impossible, and transformers would
build a mask for every pair of tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import masking_utils

_ignore_mask = getattr(masking_utils, "_ignore_causal_mask_sdpa", None)


def _ignore_full_mask(*args: Any, **options: Any) -> bool:
    """Decide as transformers does for a batch without padding."""
    if args:
        args = (None, *args[1:])
    else:
        options["padding_mask"] = None
    assert _ignore_mask is not None
    return _ignore_mask(*args, **options)


# transformers' function → what it returns for such a batch.
ANSWERS = {
    "find_packed_sequence_indices": lambda *args, **options: None,
    "is_tracing": lambda *args, **options: False,
    "_ignore_causal_mask_sdpa": _ignore_full_mask,
}


@contextmanager
def unpadded() -> Iterator[None]:
    """Make transformers treat batches inside the context as unpadded. Functions that this version lacks are skipped."""
    before = {name: getattr(masking_utils, name) for name in ANSWERS if hasattr(masking_utils, name)}
    try:
        for name in before:
            setattr(masking_utils, name, ANSWERS[name])
        yield
    finally:
        for name, function in before.items():
            setattr(masking_utils, name, function)
