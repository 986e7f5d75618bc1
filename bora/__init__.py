"""BoRA: one language model and a LoRA for each of many related tasks, tied by a hierarchical prior.

Method: Eide & Frigessi (2024), "Bayesian Hierarchical Low-Rank Adaption".
"""

from typing import TYPE_CHECKING

from bora.errors import UserError

if TYPE_CHECKING:
    from bora.api import Run, Sweep, fit, load, sweep

__version__ = "0.1.0"

__all__ = ["Run", "Sweep", "UserError", "fit", "load", "sweep"]


def __getattr__(name: str) -> object:
    # Imported only when needed, since it imports torch, Lightning and transformers.
    if name in __all__:
        from bora import api

        return getattr(api, name)
    raise AttributeError(f"module 'bora' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
