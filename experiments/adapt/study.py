"""Speakers that a run has never heard, at 1, 4, 16 and 64 speeches each: python experiments/adapt/study.py RUN TABLE

Held-out speakers of folketing are fitted from the run's prior (Θ fixed, the run's τ), and by a LoRA from scratch
(τ = 0, a fresh start); beside them stand Θ alone and the frozen backbone. The number of epochs is chosen for each method
and size on other held-out speakers; the test speakers' 16 test speeches are read once. Results go to
results.csv beside this file, a row a method, size and speaker; what is there is not done again. Then the table is
printed and figure.png drawn.
"""

import copy
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from bora.bayes.model import HierarchicalLoRA
from bora.data.batches import Batches, Documents, loader
from bora.data.table import read
from bora.lib.files import write_text_atomically
from bora.model.likelihood import n_scored
from bora.report.intervals import Interval, bootstrap, weighted_mean
from bora.runs.values import versions
from bora.use.adapt import train_epochs
from bora.use.new_tasks import new_tasks
from bora.use.restore import Restored, restore

HERE = Path(__file__).parent
N_VALIDATION, N_TEST, TEST_SPEECHES = 4, 12, 16
EPOCHS = {1: 30, 4: 15, 16: 8, 64: 4}  # at most, by speeches
BATCH, LR = 8, 1e-3
UNDER = {"own": "task", "mean": "mean", "frozen": "base"}


def speakers_of(restored: Restored, table: pd.DataFrame, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Held-out speakers in random order, the validating ones first, each with 80 of their speeches in random order."""
    table = table[(table["text"].str.len() > 40) & (table["task"] != "")].drop_duplicates(["task", "text"])
    table = table[~table["task"].isin(restored.model.adapters.task_names)]
    counts = table["task"].value_counts()
    needed = max(EPOCHS) + TEST_SPEECHES
    names = sorted(counts.index[counts >= needed])
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(names)[: N_VALIDATION + N_TEST].tolist()
    return {name: table[table["task"] == name].sample(needed, random_state=seed) for name in chosen}


@torch.no_grad()
def nats(model: HierarchicalLoRA, documents: Documents, kind: str) -> pd.DataFrame:
    """Nats and scored tokens of each task: under its θ_d ("own"), under Θ ("mean"), or the backbone's ("frozen")."""
    order = np.argsort([len(d.ids) for d in documents.documents], kind="stable")
    rows = []
    for batch in loader(documents, Batches([len(d.ids) for d in documents.documents], 32, order)):
        nll = model.nll(batch, UNDER[kind])
        for task, n, scored in zip(
            batch["task"].tolist(), nll.tolist(), n_scored(batch["labels"]).tolist(), strict=True
        ):
            rows.append((model.adapters.task_names[task], n, scored))
    return pd.DataFrame(rows, columns=["speaker", "nats", "tokens"]).groupby("speaker", sort=False).sum()


def scratch(restored: Restored, names: list[str], counts: list[int], n_tokens: int) -> HierarchicalLoRA:
    """Separate LoRAs, as PEFT starts them."""
    torch.manual_seed(0)
    return HierarchicalLoRA(restored.model.backbone, names, counts, n_tokens, tau=0.0)


def study(run: Path, path: str) -> None:
    restored = restore(run)
    speakers = speakers_of(restored, read(path))
    names = list(speakers)

    def documents(rows: slice, who: list[str]) -> Documents:
        part = pd.concat([speakers[name].iloc[rows] for name in who])
        encoded, _ = restored.tokens.encode(part)
        return Documents(encoded, [names.index(t) for t in part["task"]])

    held_out = slice(max(EPOCHS), None)
    validation, test = documents(held_out, names[:N_VALIDATION]), documents(held_out, names[N_VALIDATION:])
    out = HERE / "results.csv"
    done = pd.read_csv(out) if out.is_file() else pd.DataFrame(columns=["method", "speeches"])
    about = {
        "run": run.name,
        "tau": restored.summary["tau"],
        "dtype": restored.summary["dtype"],
        "lr": LR,
        "batch": BATCH,
        "validating": names[:N_VALIDATION],
        "testing": names[N_VALIDATION:],
        "versions": versions(),
    }
    write_text_atomically(HERE / "about.json", json.dumps(about, indent=1, ensure_ascii=False) + "\n")

    def note(result: pd.DataFrame, method: str, speeches: int, epochs: int) -> None:
        nonlocal done
        result = result.reset_index().assign(method=method, speeches=speeches, epochs=epochs)
        done = pd.concat([done, result]) if len(done) else result
        write_text_atomically(out, done.to_csv(index=False))
        nll = result["nats"].sum() / result["tokens"].sum()
        print(f"{method}, {speeches}: {np.exp(nll):.2f} after {epochs} epochs", flush=True)

    for speeches, epochs in EPOCHS.items():
        train = documents(slice(0, speeches), names)
        counts, tokens = [speeches] * len(names), sum(d.n_scored for d in train.documents)
        for method in ("prior", "scratch"):
            if ((done["method"] == method) & (done["speeches"] == speeches)).any():
                continue
            if method == "prior":
                model = new_tasks(restored, names, counts, tokens, float(restored.summary["tau"]))
            else:
                model = scratch(restored, names, counts, tokens)
            if speeches == 1 and method == "prior":
                for kind in ("mean", "frozen"):
                    note(nats(model, test, kind), kind, 0, 0)
            curve: list[float] = []
            best = copy.deepcopy(model.adapters.stored.data)

            for _ in train_epochs(model, train, epochs, LR, BATCH):
                result = nats(model, validation, "own")
                curve.append(result["nats"].sum() / result["tokens"].sum())
                if curve[-1] == min(curve):
                    best.copy_(model.adapters.stored.data)
            model.adapters.stored.data.copy_(best)
            note(nats(model, test, "own"), method, speeches, 1 + int(np.argmin(curve)))


WORDS = {
    "frozen": "frozen backbone",
    "mean": "Θ alone",
    "scratch": "LoRA from scratch",
    "prior": "from the prior N(Θ, τ⁻¹ I)",
}


def show() -> None:
    """Print the table and draw figure.png from results.csv; intervals are bootstraps over speakers."""
    results = pd.read_csv(HERE / "results.csv")
    wide = results.pivot(index="speaker", columns=["method", "speeches"], values="nats")
    tokens = results.groupby("speaker")["tokens"].first().loc[wide.index].to_numpy()
    per_token = {key: (wide[key].to_numpy(), tokens) for key in wide.columns}

    def perplexity(key) -> float:
        n, t = per_token[key]
        return float(np.exp(n.sum() / t.sum()))

    def difference(key, other) -> Interval:
        """Nats a token of `key` minus `other`."""
        return bootstrap(weighted_mean, (per_token[key][0] - per_token[other][0]) / tokens, tokens)

    lines = ["| speeches | " + " | ".join(WORDS.values()) + " | prior − Θ alone, nats a token | prior − scratch |"]
    lines.append("|--:" * 7 + "|")
    for n in EPOCHS:
        cells = [
            perplexity(("frozen", 0)),
            perplexity(("mean", 0)),
            perplexity(("scratch", n)),
            perplexity(("prior", n)),
        ]
        shown = [f"{difference(('prior', n), other):+.3f}" for other in (("mean", 0), ("scratch", n))]
        lines.append(f"| {n} | " + " | ".join([*(f"{c:.2f}" for c in cells), *shown]) + " |")
    print("\n".join(lines))

    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for method, style in (("scratch", "s-"), ("prior", "o-")):
        axis.plot(list(EPOCHS), [perplexity((method, n)) for n in EPOCHS], style, label=WORDS[method])
    axis.axhline(perplexity(("mean", 0)), color="0.35", linestyle="--", label=WORDS["mean"])
    axis.axhline(perplexity(("frozen", 0)), color="0.65", linestyle=":", label=WORDS["frozen"])
    axis.set(xscale="log", yscale="log", xlabel="speeches of the new speaker", ylabel="test perplexity")
    axis.set_xticks(list(EPOCHS), [str(n) for n in EPOCHS])
    axis.minorticks_off()
    ticks = [t for t in (40, 50, 60, 80, 100, 150, 200, 250) if axis.get_ylim()[0] <= t <= axis.get_ylim()[1]]
    axis.set_yticks(ticks, [str(t) for t in ticks])
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(HERE / "figure.png", dpi=150)


if __name__ == "__main__":
    study(Path(sys.argv[1]), sys.argv[2])
    show()
