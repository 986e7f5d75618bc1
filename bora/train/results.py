"""Collect a run's summary and tables: before training, what is trained; after testing, perplexities and effects."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bora.config.schema import Config
from bora.data.corpus import Corpus
from bora.runs.values import versions
from bora.train.module import TrainingModule


def describe_run(cfg: Config, module: TrainingModule, corpus: Corpus) -> dict[str, Any]:
    """Describe the run: the part of the summary that is known before training."""
    model, levels = module.model, module.model.adapters.levels
    above: dict[str, Any] = {}
    if levels is not None:
        above["levels"] = dict(zip(levels.columns, levels.taus, strict=True))
    if cfg.model.source == "hub" and (folder := Path(cfg.model.path).expanduser()).is_dir():
        above["model_folder"] = str(folder.resolve())  # model.path may be relative to the working directory
    return above | {
        "tau": model.tau,
        "seed": cfg.seed,
        "model": str(cfg.model.name),
        "dtype": str(model.backbone.dtype).removeprefix("torch."),
        "attention": model.backbone.model.config._attn_implementation,
        "data": str(cfg.data.name),
        "n_tasks": len(corpus.task_names),
        "parameterization": model.adapters.name,
        "penalty": model.penalty,
        "likelihood": model.likelihood,
        "lr": module.lr,
        "n_documents": int(model.task_documents.sum()),
        "n_tokens": model.n_tokens,
        "params_per_task": model.n_parameters,
        "dropped": corpus.dropped,
        **corpus.truncation.summary(),
        "leakage": corpus.leakage,
        "data_sha256": corpus.sha256,
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }


def collect_results(
    module: TrainingModule, corpus: Corpus, learned: dict[str, Any] | None
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Collect per_task.csv's rows and the summary's results from the metrics, after testing.

    Args:
        learned: returned by Fitter.fit.
    """
    val, test, base = (module.metric(k).compute() for k in ("val", "test", "base_test"))
    per_task = corpus.per_task().rename_axis("task").reset_index()
    # More than the documents' own tokens if padding is scored too.
    per_task["test_tokens"] = test["task_tokens"].long().tolist()
    for split, result in (("val", val), ("test", test)):
        per_task[f"{split}_nll"] = result["task_nll"].tolist()
        per_task[f"{split}_perplexity"] = result["task_perplexity"].tolist()
    per_task["distance"] = module.model.adapters.distances().tolist()
    for name in ("nll", "perplexity"):
        per_task[f"base_test_{name}"] = base[f"task_{name}"].tolist()
    parts = {"effect": None} | ({} if module.model.adapters.levels is None else {"own_effect": 0})
    for name, part in parts.items():
        effects = module.effect(part)
        per_task[name], per_task[f"{name}_error"] = (effects[k].tolist() for k in ("difference", "error"))
    summary = {
        "val_perplexity": val["perplexity"].item(),
        "val_perplexity_macro": val["perplexity_macro"].item(),
        "test_perplexity": test["perplexity"].item(),
        "test_perplexity_macro": test["perplexity_macro"].item(),
        "base_test_perplexity": base["perplexity"].item(),
    }
    if "val_by_batch" in module.metrics:  # the published code's figure
        by_batch = module.metric("val_by_batch").compute()
        per_task["val_perplexity_by_batch"] = by_batch["task_perplexity"].tolist()
        summary["val_perplexity_by_batch"] = by_batch["perplexity"].item()
    if learned is not None:
        per_task["c"] = learned["c_by_task"]
        summary |= {"tau": learned["tau"], "learned": {k: v for k, v in learned.items() if k != "c_by_task"}}
        if module.model.adapters.levels is not None:
            summary["levels"] = {name: level["tau"] for name, level in learned.get("levels", {}).items()}
    return per_task, summary


def describe_units(module: TrainingModule) -> pd.DataFrame:
    """Tabulate the units of all levels.

    Returns:
        Columns level, unit, n_train (training documents), distance (‖Δ‖₂, in parameter units), test_tokens, effect (how
        much higher its test documents' NLL is without Δ, in nats a token) and effect_error (standard error of effect over
        documents).
    """
    adapters = module.model.adapters
    levels = adapters.levels
    assert levels is not None
    assert adapters.stored is not None
    deviations = adapters.stored.detach()[len(adapters.task_names) :]
    table = pd.DataFrame(levels.pairs, columns=["level", "unit"])
    found = [module.effect(1 + level) for level in range(len(levels.units))]
    effects = {key: torch.cat([one[key] for one in found]).tolist() for key in ("tokens", "difference", "error")}
    return table.assign(
        n_train=levels.documents,
        distance=deviations.double().norm(dim=1).tolist(),
        test_tokens=list(map(int, effects["tokens"])),
        effect=effects["difference"],
        effect_error=effects["error"],
    )
