"""Where downloads, dequantised models and slim tables are kept between runs."""

import os
from pathlib import Path


def cache_root() -> Path:
    """$BORA_CACHE, or ~/.cache/bora."""
    return Path(os.environ.get("BORA_CACHE", "~/.cache/bora")).expanduser()
