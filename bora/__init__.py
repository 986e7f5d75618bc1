"""BoRA: one language model, many related tasks, a LoRA each, tied by a hierarchical prior.

Method: Eide & Frigessi (2024), "Bayesian Hierarchical Low-Rank Adaption".
"""

__version__ = "0.1.0"

__all__ = ["fit"]


def __getattr__(name: str) -> object:
    # Imported when asked for: it brings torch, Lightning and transformers along.
    if name == "fit":
        from bora.api import fit

        return fit
    raise AttributeError(f"module 'bora' has no attribute {name!r}")
