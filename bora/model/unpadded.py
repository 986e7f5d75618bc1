"""Tell transformers that a batch needs only the causal mask, which it would otherwise check on the GPU.

Padding stands on the right, where no real token sees it, and a row is one document. transformers cannot know either,
and looks in every forward whether positions begin anew within a row, and with some models whether a mask of ones is all
ones. Checking waits for all of the GPU's queued work; while a CUDA graph is recorded it is
impossible, and transformers would make a mask for every pair of tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import masking_utils

_ignore_mask = getattr(masking_utils, "_ignore_causal_mask_sdpa", None)


def _ignore_full_mask(*args: Any, **options: Any) -> bool:
    """Decide as transformers does where there is no padding."""
    if args:
        args = (None, *args[1:])
    else:
        options["padding_mask"] = None
    assert _ignore_mask is not None
    return _ignore_mask(*args, **options)


# transformers' function → what it gives for such a batch.
ANSWERS = {
    "find_packed_sequence_indices": lambda *args, **options: None,
    "is_tracing": lambda *args, **options: False,
    "_ignore_causal_mask_sdpa": _ignore_full_mask,
}


@contextmanager
def unpadded() -> Iterator[None]:
    """Let transformers treat every batch within as unpadded. A function that this version lacks is skipped."""
    before = {name: getattr(masking_utils, name) for name in ANSWERS if hasattr(masking_utils, name)}
    try:
        for name in before:
            setattr(masking_utils, name, ANSWERS[name])
        yield
    finally:
        for name, function in before.items():
            setattr(masking_utils, name, function)
