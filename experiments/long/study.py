"""What whole documents bring: training on the first 48 tokens of each, or on all in pieces. stdlib × opt_mini, τ = 100.

    .venv/bin/python experiments/long/study.py [FOLDER]

About 45 minutes on 2 cores; run it again to resume. Writes long.csv beside this file: for each run the test NLL, nats a
token, of the first 48 tokens of each document, of the tokens after them (in pieces, with context), and of all.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from bora.data.batches import Documents
from bora.data.read import read_documents
from bora.model.batch import to_device
from bora.use.restore import restore

HERE = Path(__file__).parent
SHAPE = "logger=none data.documents_per_task=120 data.max_tokens=48 tau=100 optim.lr=1e-3 optim.patience=3"
SHAPE += " trainer.max_epochs=8"
WAYS = {"cut": "", "chunk": "data.long=chunk", "chunk, overlap 16": "data.long=chunk data.overlap=16"}
SEEDS = (0, 1)
BATCH = 64


@torch.no_grad()
def test_nll(run: Path) -> dict[str, float]:
    """Score a run's test documents whole, whatever it was trained on; every run was trained on their `beginning`."""
    restored = restore(run)
    documents = pd.read_csv(run / "documents.csv").query("split == 'test'").drop_duplicates("row")
    table = read_documents(restored.cfg.data).loc[documents["row"]]
    names = restored.model.adapters.task_names
    tokens = replace(restored.tokens, long="chunk", overlap=16)
    pieces, _ = tokens.encode(table)
    first = np.array([i == 0 or pieces[i - 1].document != piece.document for i, piece in enumerate(pieces)])
    tasks = [names.index(table["task"].iloc[piece.document]) for piece in pieces]
    whole, nats = Documents(pieces, tasks), np.empty(len(pieces))
    order = np.argsort([len(piece.ids) for piece in pieces])
    for start in range(0, len(order), BATCH):
        some = order[start : start + BATCH].tolist()
        nats[some] = restored.model.nll(to_device(whole[some, 1], restored.model.device)).numpy()
    scored = np.array([piece.n_scored for piece in pieces])
    parts = {"beginning": first, "rest": ~first, "all": np.ones(len(pieces), dtype=bool)}
    return {name: float(nats[rows].sum() / scored[rows].sum()) for name, rows in parts.items()}


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "experiments/long")
    rows = []
    for seed in SEEDS:
        for way, words in WAYS.items():
            run = out / f"{way.replace(', ', '-').replace(' ', '')}-{seed}"
            command = [
                sys.executable,
                "-m",
                "bora.run",
                *SHAPE.split(),
                *words.split(),
                f"seed={seed}",
                f"hydra.run.dir={run}",
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            summary = restore(run).summary
            about = {key: summary[key] for key in ("best_epoch", "seconds", "n_tokens", "val_perplexity")}
            rows.append({"way": way, "seed": seed, **test_nll(run), **about})
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(HERE / "long.csv", index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
