"""Tables and picture of the optimiser's study: python experiments/optimiser/study.py, after study.sh.

A run's epochs are read from its metrics.csv. Two counts a run: epochs until validation perplexity is within
1 % of the best that any of the ways reached at that τ, and of the best of its own. The first says which way gets
there; the second is what the paper's remark on convergence is about.
"""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from bora.results.evidence import format_tau
from bora.results.figures import GROUPS, MARKERS, STYLE

HERE = Path(__file__).parent
WAYS = {
    "rule": "centered, 1e-5 · τ (the paper)",
    "constant": "centered, 1e-3",
    "noncentered": "non-centered, 1e-3",
    "path": "non-centered, 1e-3, falling τ",
}
WITHIN = 1.01


def curve(run: Path) -> list[float]:
    """Validation perplexity after each epoch."""
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    values = pd.read_csv(run / "metrics.csv")["val/perplexity"].dropna().tolist()
    return values[: summary["epochs"]]  # the best epoch's is written once more at the end


def read(folder: str) -> pd.DataFrame:
    rows = []
    for path in sorted((HERE / "runs" / folder).glob("*/summary.json")):
        summary = json.loads(path.read_text("utf-8"))
        rows.append(
            {
                "way": folder,
                "tau": float(summary["tau"]),
                "form": summary["parameterization"],
                "lr": summary["lr"],
                "epochs": summary["epochs"],
                "curve": curve(path.parent),
                "best_val": summary["val_perplexity"],
                "test": summary["test_perplexity"],
            }
        )
    return pd.DataFrame(rows)


def epochs_until(values: list[float], target: float) -> int | None:
    return next((i for i, v in enumerate(values, 1) if v <= target * WITHIN), None)


def count(runs: pd.DataFrame) -> pd.DataFrame:
    runs = runs.copy()
    reached = runs.groupby("tau")["best_val"].transform("min")
    for column, target in (("to_best_of_all", reached), ("to_own_best", runs["best_val"])):
        runs[column] = [epochs_until(c, t) for c, t in zip(runs["curve"], target, strict=True)]
    return runs.drop(columns="curve")


def markdown(runs: pd.DataFrame) -> str:
    """τ down; for each way: best validation perplexity, epochs to within 1 % of all, of its own."""
    head = ["τ"]
    for way in WAYS.values():
        head += [way, "all", "own"]
    lines = [head, ["---"] * len(head)]
    for tau, at in runs.groupby("tau"):
        row = [format_tau(tau)]
        for way in WAYS:
            cell = at[at["way"] == way].iloc[0]
            all_ = "never" if pd.isna(cell["to_best_of_all"]) else f"{cell['to_best_of_all']:.0f}"
            row += [f"{cell['best_val']:.2f}", all_, f"{cell['to_own_best']:.0f}"]
        lines.append(row)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw(runs: pd.DataFrame) -> Figure:
    with rc_context(STYLE):
        figure = Figure(figsize=(9.2, 4.0))
        taus = sorted(runs["tau"].unique())
        place = {tau: i for i, tau in enumerate(taus)}
        quality, speed = figure.subplots(1, 2)
        for n, (way, label) in enumerate(WAYS.items()):
            at = runs[runs["way"] == way].sort_values("tau")
            look = {
                "color": GROUPS[n],
                "marker": MARKERS[n],
                "markersize": 5,
                "linewidth": 1.5,
                "label": label,
            }
            quality.plot([place[t] for t in at["tau"]], at["best_val"], **look)
            speed.plot([place[t] for t in at["tau"]], at["to_best_of_all"].astype(float), **look)
        best = runs["best_val"].min()
        quality.set_ylim(best * 0.98, min(runs["best_val"].max() * 1.02, best * 1.6))
        quality.set_ylabel("best validation perplexity")
        quality.set_title("What is reached")
        speed.set_ylim(0)
        speed.set_ylabel("epochs")
        speed.set_title("Epochs to within 1 % of the best at this τ")
        for ax in (quality, speed):
            ax.set_xticks(range(len(taus)), [format_tau(t) for t in taus])
            ax.set_xlabel("τ")
        figure.legend(*quality.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        figure.draw_without_rendering()
        return figure


def main() -> None:
    runs = count(pd.concat([read(way) for way in WAYS], ignore_index=True))
    runs.to_csv(HERE / "results.csv", index=False)
    (HERE / "table.md").write_text(markdown(runs), "utf-8")
    draw(runs).savefig(HERE / "epochs.png")
    print(markdown(runs))
    print("rates at τ = 10⁴")
    rates = pd.concat([read("rate"), *(read(w) for w in ("rule", "constant", "noncentered"))])
    rates = rates[rates["tau"] == 1e4]
    rates["to_own_best"] = [epochs_until(c, min(c)) for c in rates["curve"]]
    rates["lr over prior's sd"] = rates["lr"] * math.sqrt(1e4)
    rates = rates.drop(columns=["curve", "way"]).sort_values(["form", "lr"])
    rates.to_csv(HERE / "rates.csv", index=False)
    print(rates.replace(np.nan, None).to_markdown(index=False))


if __name__ == "__main__":
    main()
