"""A tiny OPT with random weights, and documents for it: small enough for float64 and for loops."""

import json
import logging
import os
import sys
from functools import cache
from pathlib import Path

# One thread for each test process: the models are tiny, and make test runs a process on each core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from transformers import OPTConfig, OPTForCausalLM

import bora.commands.run
from bora.bayes.model import HierarchicalLoRA
from bora.config.compose import compose_config
from bora.data.corpus import Corpus
from bora.data.module import TaskDataModule
from bora.data.tokens import Encoded, Truncation
from bora.model.backbone import Backbone
from bora.model.lora import LowRank
from bora.runs.directory import RunDirectory
from bora.train.run import train

VOCABULARY = 60


def tiny_opt(seed: int = 0, dtype: torch.dtype = torch.float32) -> OPTForCausalLM:
    """Build an OPT of two layers, 16 wide; the same seed has the same weights."""
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = OPTConfig(vocab_size=VOCABULARY, max_position_embeddings=32, dropout=0.1, init_std=0.3, **sizes)
    return OPTForCausalLM(config).to(dtype).eval()


def encoded_of(ids, n_prompt: int = 0, document: int = 0) -> Encoded:
    """Make a document of these tokens; the first `n_prompt` are not scored."""
    return Encoded(np.array(ids, dtype=np.int32), np.arange(len(ids)) >= n_prompt, document)


def tiny_corpus(sizes: dict[str, int], seed: int = 0) -> Corpus:
    """Draw documents of 3 to 12 tokens: of each task `sizes[task]` to train on, and 2 + 2 held out."""
    rng = np.random.default_rng(seed)
    rows, encoded = [], []
    for task, n_train in sizes.items():
        for split in ["train"] * n_train + ["validation"] * 2 + ["test"] * 2:
            ids = rng.integers(4, VOCABULARY, rng.integers(3, 13))
            encoded.append(encoded_of(ids, document=len(rows)))
            rows.append((len(rows), 0, task, split, "…", len(ids), len(ids) - 1))
    documents = pd.DataFrame(rows, columns=["row", "piece", "task", "split", "text", "n_tokens", "n_scored"])
    return Corpus(list(sizes), documents, encoded, {}, Truncation(0, 0), "", {}, {})


def tiny_data(sizes: dict[str, int], batch_size: int = 4, seed: int = 0) -> TaskDataModule:
    """Return the DataModule of a tiny_corpus."""
    return TaskDataModule(tiny_corpus(sizes), batch_size, 4, seed)


def hierarchical(
    model, tasks, task_documents, n_tokens, tau, rank=2, alpha=3.0, targets=None, how=None, **options
) -> HierarchicalLoRA:
    """Build BoRA on a transformers model; `how` has further arguments of its Backbone."""
    backbone = Backbone(model, targets, rank, alpha, **how or {})
    return HierarchicalLoRA(backbone, tasks, task_documents, n_tokens, tau, **options)


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


def silent_trainer(**options) -> L.Trainer:
    """Return a CPU trainer that prints and writes nothing."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    off = "logger enable_checkpointing enable_progress_bar enable_model_summary use_distributed_sampler".split()
    return L.Trainer(accelerator="cpu", num_sanity_val_steps=0, **dict.fromkeys(off, False), **options)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Give this session its own cache: tokens cached by an earlier version would hide what this one does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def quick_reports(request, monkeypatch):
    """Draw figures only in tests marked `figures`; drawing takes most of the time."""
    marker = request.node.get_closest_marker("figures")
    if marker is None:
        monkeypatch.setattr("bora.report.page.draw_figures", lambda *_: [])
    elif "pdf" not in marker.args:
        monkeypatch.setattr("bora.report.pictures.FORMATS", {"png": {}})


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Run `python -m bora.run ARGUMENTS` in this process; return exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")

    def run(*arguments: str) -> tuple[int, str, str]:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["bora.commands.run", *arguments])
        code = 0
        try:
            bora.commands.run.main()
        except SystemExit as leave:
            code = leave.code
        out, err = capfd.readouterr()
        return code, out, err

    yield run
    root = logging.getLogger()
    for handler in root.handlers[:]:  # Hydra's handlers, whose files are closed
        if type(handler) in (logging.StreamHandler, logging.FileHandler):
            root.removeHandler(handler)
    root.setLevel(logging.WARNING)


@pytest.fixture
def call(capfd, monkeypatch):
    """Run a command's main in this process; return exit code, standard output and standard error."""

    def run(main, *arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()  # drop what the test's own training has printed
        monkeypatch.setattr(sys, "argv", ["bora", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as leave:
            code = leave.code
        return code, *capfd.readouterr()

    return run


def one_line(found: tuple[int, str, str], *words: str, code: int = 2) -> None:
    """Assert that a command ended with this exit code and one `bora: …` line on standard error with these words."""
    assert (found[0], found[2][:6], found[2].count("\n")) == (code, "bora: ", 1), found[2]
    assert all(word in found[2] for word in words), found[2]


TASKS = {"a": 24, "a longer name": 40, "../b | <i>*x*": 30}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Train a run on a table of TASKS, t.csv beside it, once per session for the same overrides; tests only read it."""

    @cache
    def train_once(*overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("trained")
        path = table(folder / "t.csv", TASKS)
        words = "data=table data.min_documents=5 data.max_tokens=20 optim.lr=0.02 lora.rank=3 lora.alpha=5 logger=none"
        config, _ = compose_config([*words.split(), f"data.path={path}", "trainer.max_epochs=1", *overrides])
        train(config, RunDirectory(folder / "run"), group="group", name="run")
        return folder / "run"

    return train_once


def table(path: Path, sizes: dict[str, int], seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    words = "the house speaker minister asks for a vote on this law today and tomorrow".split()
    rows = [(t, " ".join(rng.choice(words, rng.integers(2, 30)))) for t, n in sizes.items() for _ in range(n)]
    pd.DataFrame(rows, columns=["task", "text"]).to_csv(path, index=False)
    return path


def same_files(a: Path, b: Path) -> None:
    """Assert that two run directories have the same results."""
    for name in ("per_task.csv", "documents.csv", "validation_by_task.csv"):
        assert (a / name).read_text() == (b / name).read_text()
    timeless = [c for c in pd.read_csv(a / "metrics.csv") if c != "tokens/s"]
    pd.testing.assert_frame_equal(pd.read_csv(a / "metrics.csv")[timeless], pd.read_csv(b / "metrics.csv")[timeless])
    one, other = (json.loads((f / "summary.json").read_text()) for f in (a, b))
    for summary in (one, other):
        del summary["seconds"], summary["train_tokens_per_second"]
    assert one == other
    for name in ("best", "last"):
        one, other = (torch.load(f / f"checkpoints/{name}.ckpt", weights_only=True) for f in (a, b))
        assert one["global_step"] == other["global_step"]
        for key, value in one["state_dict"].items():
            assert torch.equal(value, other["state_dict"][key])
