"""Finished runs made by hand with known numbers, for the tests of the report."""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from bora.config.compose import compose_config
from bora.report.evidence import Evidence
from bora.report.series import Series, read_runs, series_of
from bora.runs.directory import RunDirectory
from bora.runs.values import to_yaml, write_json

# τ → (learning rate, validation perplexity, test perplexity, test perplexity by task)
KNOWN = {
    0.0: (1e-4, 20.0, 21.0, {"ann": 22.0, "bo": 20.0, "cy": 21.5}),
    10.0: (1e-3, 12.0, 13.0, {"ann": 13.5, "bo": 12.5, "cy": 13.0}),
    100.0: (1e-3, 11.0, 13.5, {"ann": 14.0, "bo": 12.0, "cy": 14.5}),
    math.inf: (1e-3, 15.0, 15.5, {"ann": 15.0, "bo": 16.0, "cy": 15.5}),
}
N_TRAIN = {"ann": 10, "bo": 20, "cy": 30}


@cache
def base_settings() -> dict:
    words = ["data=table", "data.path=t.csv", "logger=none", "trainer.max_epochs=9", "name=s"]
    return compose_config(words)[0].model_dump()


def write_run(folder: Path, tau: float, seed: int = 0, shift: float = 0.0, known=None, **config) -> Path:
    """Write a finished run's folder with the known numbers, all perplexities higher by `shift`."""
    lr, val, test, tasks = (known or KNOWN)[tau]
    folder.mkdir(parents=True, exist_ok=True)
    settings = base_settings() | {"tau": tau, "seed": seed}
    for key, value in config.items():
        group, name = key.split("__")
        settings[group] = settings[group] | {name: value}
    (folder / "config.yaml").write_text(to_yaml(settings))
    rows = [(0, 9, val + 9), (1, 19, val + 3), (2, 29, val), (3, 39, val + 1), (4, 40, val)]  # the last: after training
    metrics = pd.DataFrame(rows, columns=["epoch", "step", "val/perplexity"])
    metrics.assign(**{"val/nll": 1.0, "val/c": math.nan}).to_csv(folder / "metrics.csv", index=False)
    perplexity, places = np.array([*tasks.values()]) + shift, np.arange(len(tasks))
    sizes = {"n_train": [N_TRAIN.get(task, 4 + i * i % 97) for i, task in enumerate(tasks)], "n_val": 5, "n_test": 5}
    figures = {"val_nll": math.log(val), "val_perplexity": val + shift, "test_nll": np.log(perplexity)}
    figures |= {"test_perplexity": perplexity, "distance": places + 1.0, "effect": 0.01 * places - 0.01}
    tokens = {"train_tokens": 100, "test_tokens": 50, "effect_error": 0.01}
    pd.DataFrame({"task": [*tasks]} | sizes | tokens | figures).to_csv(folder / "per_task.csv", index=False)
    summary = {"tau": "inf" if math.isinf(tau) else tau, "seed": seed, "lr": lr, "best_epoch": 3, "data_sha256": "abc"}
    summary |= {"model": "opt_mini", "data": settings["data"]["name"], "versions": {"bora": "0"}}
    for split, value in (("val", val), ("test", test)):
        summary |= {f"{split}_perplexity": value + shift, f"{split}_perplexity_macro": value + shift}
    (folder / "summary.json").write_text(json.dumps(summary | {"base_test_perplexity": 99.0}))
    return folder


def write_summary(folder: Path, **more) -> None:
    """Add to a run's summary; dictionaries are merged."""
    summary = json.loads((folder / "summary.json").read_text())
    more = {k: summary.get(k, {}) | v if isinstance(v, dict) else v for k, v in more.items()}
    write_json(folder / "summary.json", summary | more)


def write_settings(folder: Path, **more) -> None:
    """Change a run's settings; dictionaries, such as `data`, are merged."""
    config = RunDirectory(folder).config().model_dump()
    more = {k: config[k] | v if isinstance(v, dict) else v for k, v in more.items()}
    (folder / "config.yaml").write_text(to_yaml(config | more))


def with_learned(folder: Path, tau: float, seed: int, shift: float = 0.0) -> Path:
    """Write a run that learned this τ, with the known numbers of τ = 10."""
    write_settings(write_run(folder, 10.0, seed, shift), tau="learn")
    learned = {"tau": tau, "c": 0.0, "c_spread": 0.0}
    if not math.isinf(tau):
        learned |= {"tau_interval": [tau / 2, tau * 2], "c": 0.5, "c_interval": [0.25, 0.75], "c_spread": 0.1}
    write_summary(folder, tau=tau, learned=learned)
    return folder


def of_level(folder: Path, tau: float) -> Path:
    """Add a level, party, with this τ to a run."""
    write_settings(folder, data={"levels": ["party"]})
    write_summary(folder, levels={"party": tau})
    return folder


def series_in(*folders: Path) -> list[Series]:
    """Sort all runs of these folders into series, and check that none is left out."""
    runs, problems = read_runs(folders)
    series, more = series_of(runs)
    assert problems == more == []
    return series


def evidence_of(*folders: Path) -> Evidence:
    (series,) = series_in(*folders)
    return Evidence(series)
