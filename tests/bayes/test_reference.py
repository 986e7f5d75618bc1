"""experiment=reference: each thing that the published code does, against a small calculation."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from bora.config.compose import compose_config
from bora.data.batches import Documents
from bora.model.pretrained import load_packaged
from bora.train.build import build_module, load_corpus
from bora.train.perplexity import BatchPerplexity
from tests.conftest import encoded_of, hierarchical, random_factors, tiny_data, tiny_opt

SIZES = {"a": 3, "b": 5, "c": 4}


def reference(*overrides: str):
    return compose_config(["experiment=reference", *overrides])[0]


def batch(score_padding: bool = False) -> dict:
    """Four ragged documents of two tasks; the third task is absent."""
    rng = np.random.default_rng(0)
    encoded = [encoded_of(rng.integers(4, 50, n), 1, i) for i, n in enumerate((7, 3, 9, 5))]
    return Documents(encoded, [0, 1, 0, 1], 2 if score_padding else None)[list(range(4)), 4]


def model(tau: float = 100.0, **options):
    options |= {"penalty": "norm", "likelihood": "task_mean", "parameterization": "centered", "estimator": "dense"}
    return hierarchical(tiny_opt(), list(SIZES), [3, 5, 4], 100, tau, **options).double()


def test_the_objective_is_n_d_times_the_mean_nll_plus_norms_that_are_not_squared():
    m, b = model(tau=3.0), batch()
    random_factors(m)
    state, objective = m.adapters.saved(), m.objective(b)
    nll, scored = m.nll(b), (b["labels"][:, 1:] != -100).sum(1)
    rows = [(b["task"] == task) for task in (0, 1)]
    expected = sum(n_d * nll[mine].sum() / scored[mine].sum() for n_d, mine in zip((3, 5), rows, strict=True))
    torch.testing.assert_close(objective.likelihood, expected)  # U itself, not U/T
    tensors = [(state[f"{key.removesuffix('_mean')}"], mean) for key, mean in state.items() if key.endswith("_mean")]
    norms = [(theta - mean).square().sum().sqrt() for thetas, mean in tensors for theta in thetas]
    torch.testing.assert_close(objective.prior, 3.0 * sum(norms))


def ton(path, sizes: dict[str, int]):
    """Write a ton.csv in which every tenth speech of a speaker is too short, with 40 characters."""
    rows = []
    for name, n in sizes.items():
        for i in range(n):
            speech = f"{name} taler om sak nummer {i} i dag, president" + " og mer" * (i % 9)
            rows.append((name, f"{i % 28 + 1:02d}", speech[:40] if i % 10 == 0 else speech))
    order = np.random.default_rng(0).permutation(len(rows))
    table = pd.DataFrame([rows[i] for i in order], columns=["rep_name", "day", "text"])
    table["date"] = "1999-01-" + table["day"]
    table.drop(columns="day").to_csv(path, index=False)
    return table


def test_speakers_and_tokens_equal_the_published_codes(tmp_path, monkeypatch):
    monkeypatch.setenv("BORA_CACHE", str(tmp_path))
    sizes = {"Zara B. Ås": 230, "Bo Li": 200, "Ann Vik": 201, "Cy Dahl": 1000, "Dag Eng": 210, "Per H. Moe": 999}
    ton(tmp_path / "ton.csv", sizes)
    cfg = reference(f"data.path={tmp_path / 'ton.csv'}", "data.n_tasks=3", "model=opt_mini")

    pretrained = load_packaged("opt_mini")
    corpus = load_corpus(cfg, pretrained)
    # 200 < n < 1000, then short texts are dropped, then alphabetical by cleaned name.
    assert corpus.task_names == ["ann vik", "dag eng", "per h moe"]
    # " [task] <name>" unscored, " [text] <speech>" scored, the end token; 128 tokens; no beginning token.
    tokenizer = pretrained.tokenizer
    for document, encoded in zip(corpus.documents.itertuples(), corpus.encoded, strict=True):
        prompt = tokenizer(f" [task] {document.task}", add_special_tokens=False).input_ids
        text = tokenizer(f" [text] {document.text}", add_special_tokens=False).input_ids
        assert encoded.ids.tolist() == [*prompt, *text, tokenizer.eos_token_id][:128]
        assert encoded.scored.tolist() == [False] * len(prompt) + [True] * (len(encoded.ids) - len(prompt))


def test_padding_is_the_end_token_and_is_scored_as_a_target():
    b = batch(score_padding=True)
    assert b["input_ids"].shape == (4, 9)
    assert b["labels"][1].tolist() == [-100, *b["input_ids"][1, 1:3].tolist(), 2, 2, 2, 2, 2, 2]
    assert b["attention_mask"].sum(1).tolist() == [7, 3, 9, 5]
    # transformers' own loss, mask and all, is the same number.
    m = model()
    own = m.backbone.model(input_ids=b["input_ids"], attention_mask=b["attention_mask"], labels=b["labels"]).loss.item()
    scored = (b["labels"][:, 1:] != -100).sum()
    assert (m.nll(b, "base").sum() / scored).item() == pytest.approx(own)


def test_the_order_of_documents_is_the_same_in_every_epoch():
    data = tiny_data(SIZES)
    data.order = "fixed"
    loader = data.train_dataloader()
    epochs = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        epochs.append([i for indices, _ in loader.sampler for i in indices])
    assert epochs[0] == epochs[1] != sorted(epochs[0])
    assert sorted(epochs[0]) == list(range(12))


def test_perplexity_by_batch_is_exp_of_the_mean_over_batches_of_the_mean_over_tasks():
    metric = BatchPerplexity(3)
    metric.update(torch.tensor([6.0, 2.0, 5.0]), torch.tensor([3, 1, 2]), torch.tensor([0, 0, 2]))
    metric.update(torch.tensor([4.0]), torch.tensor([4]), torch.tensor([2]))
    result = metric.compute()
    assert result["nll"].item() == pytest.approx(((8 / 4 + 5 / 2) / 2 + 4 / 4) / 2)
    assert result["task_perplexity"][[0, 2]].tolist() == pytest.approx([math.exp(2), math.exp((2.5 + 1) / 2)])
    assert math.isnan(result["task_perplexity"][1])


def test_initialisation_lora_and_optimiser_equal_the_published_codes():
    cfg = reference()
    assert (cfg.lora.rank, cfg.lora.alpha, cfg.lora.target_modules, cfg.lora.init_std) == (16, 16, None, 0.001)
    assert (cfg.data.batch_size, cfg.trainer.max_epochs, cfg.optim.patience) == (64, 1000, 8)
    assert (cfg.prior.parameterization, cfg.optim.lr, cfg.model.dtype) == ("centered", None, "float32")
    assert (cfg.data.split.method, cfg.data.order, cfg.data.score_padding) == ("reference", "fixed", True)
    module = build_module(cfg, model())
    assert module.lr == pytest.approx(1e-3)  # 1e-5 · τ
    (group,) = module.configure_optimizers().param_groups
    assert not group.get("weight_decay")
    assert module.monitor == "val_by_batch/nll"


def test_a_run_writes_the_published_codes_perplexity(command, tmp_path, monkeypatch):
    monkeypatch.setenv("BORA_CACHE", str(tmp_path))
    ton(tmp_path / "ton.csv", {"Ann Vik": 210, "Dag Eng": 220})
    data = f"data.path={tmp_path / 'ton.csv'} data.n_tasks=2 data.max_tokens=24 data.documents_per_task=40"
    fit = "experiment=reference tau=10 model=opt_mini trainer.max_epochs=1 logger=none hydra.run.dir=a"
    code, *_ = command(*fit.split(), *data.split())
    assert code == 0
    summary = json.loads((tmp_path / "a/summary.json").read_text())
    per_task = pd.read_csv(tmp_path / "a/per_task.csv")
    assert summary["val_perplexity_by_batch"] > 1
    assert per_task["val_perplexity_by_batch"].notna().all()
    # Padding is scored, too: the 2 tasks × 10 test documents have fewer tokens of their own.
    own = pd.read_csv(tmp_path / "a/documents.csv").query("split == 'test'")["n_scored"].sum()
    assert per_task["test_tokens"].sum() >= own
