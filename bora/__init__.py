"""BoRA: one language model, many related tasks, a LoRA each, tied by a hierarchical prior.

Method: Eide & Frigessi (2024), "Bayesian Hierarchical Low-Rank Adaption".
"""

__version__ = "0.1.0"
