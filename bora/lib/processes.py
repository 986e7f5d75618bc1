"""Several processes that train together: one of them writes and speaks for all."""

from lightning.pytorch.utilities import rank_zero_only


def is_first() -> bool:
    """Whether this is that one, or the only one."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]
