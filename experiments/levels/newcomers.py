"""New speakers of known parties, at 0, 1, 4 and 16 speeches each: python experiments/levels/newcomers.py [RUN…]

Each RUN has data.levels=[party] and a table of speeches. Members whom it has not heard are fitted with Θ and the
parties held, once from Θ and their party's deviation, and once as if their party were not known: from Θ, with the wider
prior. The number of epochs is chosen for each on other new members; 12 speeches each are the test, and read once.
Adds the scores to newcomers.csv beside this file. Prints from there the perplexities, and the paired difference in nats
a token, mean over runs, with a 95 % bootstrap over members.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from bora.bayes.levels import OTHER, place_new
from bora.bayes.model import HierarchicalLoRA
from bora.data.batches import Documents
from bora.data.read import read_column, read_documents
from bora.model.likelihood import n_scored
from bora.report.intervals import bootstrap, weighted_mean
from bora.use.adapt import train_epochs
from bora.use.new_tasks import new_tasks
from bora.use.restore import Restored, restore

N_VALIDATION, N_TEST, TEST_SPEECHES = 6, 14, 12
SCORES = Path(__file__).with_suffix(".csv")
SIZES, EPOCHS, LR, BATCH = (0, 1, 4, 16), 8, 1e-3, 8


def newcomers(restored: Restored) -> pd.DataFrame:
    """28 speeches each of members whom the run has not heard and whose party it has, the validating ones first."""
    table = read_documents(restored.cfg.data)
    table["party"] = read_column(restored.cfg.data, "party", table.index, "party ")
    adapters = restored.model.adapters
    table = table[(table["text"].str.len() > 40) & (table["task"] != "")].drop_duplicates(["task", "text"])
    table = table[~table["task"].isin(adapters.task_names) & table["party"].isin(adapters.levels.units[0])]
    counts = table["task"].value_counts()
    names = sorted(counts.index[counts >= max(SIZES) + TEST_SPEECHES])
    chosen = np.random.default_rng(0).permutation(names)[: N_VALIDATION + N_TEST]
    return pd.concat([table[table["task"] == n].sample(max(SIZES) + TEST_SPEECHES, random_state=0) for n in chosen])


@torch.no_grad()
def score(model: HierarchicalLoRA, documents: Documents) -> pd.DataFrame:
    """Nats and scored tokens of each member."""
    rows, order = [], np.argsort([len(d.ids) for d in documents.documents])
    for start in range(0, len(order), 16):
        batch = documents[order[start : start + 16].tolist(), 1]
        rows += zip(batch["task"].tolist(), model.nll(batch).tolist(), n_scored(batch["labels"]).tolist(), strict=True)
    return pd.DataFrame(rows, columns=["member", "nats", "tokens"]).groupby("member").sum()


def study(run: Path) -> pd.DataFrame:
    """A row a size, way and test member: nats and tokens of the test speeches."""
    restored = restore(run)
    table = newcomers(restored)
    names = list(dict.fromkeys(table["task"]))
    place, turn = table["task"].map(names.index), table.groupby("task").cumcount()
    found = []
    for way in ("party known", "not known"):
        party = table["party"] if way == "party known" else table["party"].map(lambda _: OTHER)
        levels, units = place_new(restored.model.adapters.levels, {"party": party.tolist()}, place.tolist())

        def documents(rows: pd.Series, units=units) -> Documents:
            kept = np.flatnonzero(rows)
            encoded, _ = restored.tokens.encode(table.iloc[kept])
            whole = [place.iloc[kept[e.document]] for e in encoded]
            return Documents(encoded, whole, units=[units[kept[e.document]] for e in encoded])

        test = documents(turn >= max(SIZES))
        for size in SIZES:
            training = documents(turn < max(1, size))
            n_tokens = sum(e.n_scored for e in training.documents)
            model = new_tasks(restored, names, [max(1, size)] * len(names), n_tokens, restored.model.tau, levels)
            by_epoch = [score(model, test)]

            if size:
                by_epoch += [score(model, test) for _ in train_epochs(model, training, EPOCHS, LR, BATCH)]
            best = min(by_epoch, key=lambda one: one["nats"].iloc[:N_VALIDATION].sum())
            found.append(best.iloc[N_VALIDATION:].reset_index().assign(size=size, way=way, run=run.name))
    return pd.concat(found)


def main() -> None:
    """Study each run, and print the means of all that were studied."""
    for run in map(Path, sys.argv[1:]):
        study(run).to_csv(SCORES, mode="a", header=not SCORES.exists(), index=False, lineterminator="\n")
    scores = pd.read_csv(SCORES)
    lines = []
    for size, own in scores.groupby("size"):
        nats = own.pivot_table(index="member", columns="way", values="nats")
        tokens = own.groupby("member")["tokens"].mean().to_numpy(float)
        difference = ((nats["party known"] - nats["not known"]) / tokens).to_numpy()
        perplexity = np.exp(nats.sum() / tokens.sum())
        cells = (f"{perplexity[way]:.2f}" for way in ("party known", "not known"))
        lines.append([str(size), *cells, f"{bootstrap(weighted_mean, difference, tokens):+.4f}"])
    head = ["speeches", "party known", "not known", "difference, nats a token"]
    sys.stdout.write(pd.DataFrame(lines, columns=head).to_markdown(index=False, disable_numparse=True) + "\n")


if __name__ == "__main__":
    main()
