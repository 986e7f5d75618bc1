"""Runs of one corpus side by side, as Markdown: python experiments/compare.py BASELINE_RUN RUN…

Every run must have tested on the same documents. The last column is the difference of the test NLL
to the baseline's, nats a token over all tasks, with a 95 % interval: a bootstrap over tasks (10,000
draws, seed 0), paired, since the same tasks are drawn for both. It says how much the tasks at hand
speak with one voice; it does not cover other seeds.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd


def load(folder: Path) -> tuple[dict, pd.DataFrame]:
    return json.loads((folder / "summary.json").read_text("utf-8")), pd.read_csv(
        folder / "per_task.csv", index_col="task"
    )


def main() -> None:
    folders = list(dict.fromkeys(Path(f) for f in sys.argv[1:]))  # a pattern may name the baseline again
    if len(folders) < 2:
        sys.exit("give the baseline's run directory and at least one more")
    (baseline, base_tasks), *others = map(load, folders)
    for summary, tasks in others:
        if (
            summary["data_sha256"] != baseline["data_sha256"]
            or tasks.index.tolist() != base_tasks.index.tolist()
        ):
            sys.exit("the runs are not of the same documents")
    tokens = base_tasks["test_tokens"].to_numpy()
    draws = np.random.default_rng(0).integers(0, len(tokens), (10_000, len(tokens)))
    print(
        "| τ | form | learning rate | seed | best epoch | validation ppl | test ppl | mean over tasks "
        "| better than baseline | Δ test NLL |"
    )
    print("|" + "---|" * 10)
    rows = sorted(
        map(load, folders),
        key=lambda r: (r[0]["parameterization"] == "centered", float(r[0]["tau"]), r[0]["lr"]),
    )
    for summary, tasks in rows:
        difference = (tasks["test_nll"] - base_tasks["test_nll"]).to_numpy()
        sampled = (difference[draws] * tokens[draws]).sum(1) / tokens[draws].sum(1)
        low, high = np.percentile(sampled, [2.5, 97.5])
        mean = (difference * tokens).sum() / tokens.sum()
        change = "baseline" if summary == baseline else f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        better = "" if summary == baseline else f"{(difference < 0).sum()} of {len(tokens)}"
        print(
            f"| {float(summary['tau']):g} | {summary['parameterization']} | {summary['lr']:g} | {summary['seed']} "
            f"| {summary['best_epoch']} of {summary['epochs']} | {summary['val_perplexity']:.2f} "
            f"| {summary['test_perplexity']:.2f} | {summary['test_perplexity_macro']:.2f} | {better} | {change} |"
        )
    print(f"| frozen backbone | | | | | | {baseline['base_test_perplexity']:.2f} | | | |")


if __name__ == "__main__":
    main()
