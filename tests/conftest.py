"""A tiny OPT with random weights, and documents for it: small enough for float64 and for loops."""

import logging
import os

# One thread a test process: the models are tiny, and make test runs a process a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from bora.data.encoding import Encoded
from bora.data.module import Corpus, TaskDataModule
from bora.data.selection import Dropped
from bora.data.encoding import Truncation
from bora.model.adapters import LowRank

VOCABULARY = 60


def tiny_opt(seed: int = 0, dtype: torch.dtype = torch.float32) -> OPTForCausalLM:
    """Two layers, 16 wide; the same weights for the same seed."""
    torch.manual_seed(seed)
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        dropout=0.1,
        init_std=0.3,
    )
    return OPTForCausalLM(config).to(dtype).eval()


def tiny_corpus(sizes: dict[str, int], seed: int = 0) -> Corpus:
    """Random documents of 3 to 12 tokens; sizes: training documents by task, and 2 + 2 held out."""
    rng = np.random.default_rng(seed)
    rows, encoded = [], []
    for task, n_train in sizes.items():
        for split in ["train"] * n_train + ["validation"] * 2 + ["test"] * 2:
            ids = rng.integers(4, VOCABULARY, rng.integers(3, 13)).astype(np.int32)
            encoded.append(Encoded(ids, n_prompt=0))
            rows.append((len(rows), task, split, "…", len(ids), len(ids) - 1))
    documents = pd.DataFrame(rows, columns=["row", "task", "split", "text", "n_tokens", "n_scored"])
    return Corpus(list(sizes), documents, encoded, Dropped(), Truncation(0, 0), "")


def tiny_data(sizes: dict[str, int], batch_size: int = 4, seed: int = 0) -> TaskDataModule:
    """The DataModule of a tiny_corpus."""
    return TaskDataModule(tiny_corpus(sizes), 1, batch_size, 4, seed)


def random_factors(model, seed: int = 0, std: float = 0.2) -> None:
    """Give every task and Θ its own nonzero factors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def merged(base: OPTForCausalLM, lora: dict[str, LowRank], scale: float) -> OPTForCausalLM:
    """Add (α/r) B A to the base model's own weights."""
    with torch.no_grad():
        for name, (A, B) in lora.items():
            weight = base.get_submodule(name).weight
            weight += scale * (B.to(weight.dtype) @ A.to(weight.dtype))
    return base


@pytest.fixture
def trainer() -> L.Trainer:
    """A silent CPU trainer of a few epochs."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
