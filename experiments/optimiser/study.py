"""Tables and picture of the optimiser's study: python experiments/optimiser/study.py, after study.sh.

Two counts a run: epochs until validation perplexity is within 1 % of the best that any of the ways reached at that τ
with that seed, and of the best of its own. The first says which way gets there; the second is what the paper's remark
on convergence is about.

Reads runs.csv.gz and curves.csv, a row for each epoch of each run: validation perplexity, and the mean of the logged
steps' prior and likelihood in nats a token. Where the runs' own folders are here, curves.csv is made from them first.
"""

import math
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from bora.lib.names import format_tau
from bora.report.drawing import GROUPS, STYLE
from bora.runs.archive import RunRecord, read_archive

MARKERS = "osD^vPX*"

HERE = Path(__file__).parent
RUNS = read_archive(HERE / "runs.csv.gz")
WAYS = {
    "rule": "centered, 1e-5 · τ (the paper)",
    "constant": "centered, 1e-3",
    "noncentered": "non-centered, 1e-3",
    "path": "non-centered, 1e-3, falling τ",
}
WITHIN = 1.01


def place(run: RunRecord) -> str:
    """The run's folder as the archive names it: constant/tau=0,seed=0."""
    return run.folder.relative_to(HERE).as_posix()


def write_curves() -> None:
    """Write curves.csv from the runs' metrics.csv."""
    parts = []
    for run in RUNS:
        metrics = pd.read_csv(run.folder / "metrics.csv")
        # The best epoch's perplexity is written once more at the end.
        perplexity = metrics["val/perplexity"].dropna().tolist()[: run.summary["epochs"]]
        means = metrics.groupby("epoch")[["train/prior", "train/likelihood"]].mean().head(len(perplexity))
        part = pd.DataFrame({"run": place(run), "epoch": range(1, len(perplexity) + 1), "val_perplexity": perplexity})
        parts.append(part.assign(prior=means["train/prior"].tolist(), likelihood=means["train/likelihood"].tolist()))
    pd.concat(parts).to_csv(HERE / "curves.csv", index=False, float_format="%.6g")


def read_runs() -> pd.DataFrame:
    """One row a run: which way, its settings and results, and its validation perplexity after each epoch."""
    curves = pd.read_csv(HERE / "curves.csv").groupby("run")["val_perplexity"].agg(list)
    rows = []
    for run in RUNS:
        summary = run.summary
        rows.append(
            {
                "way": place(run).split("/")[0],
                "tau": summary["tau"],
                "seed": summary["seed"],
                "form": summary["parameterization"],
                "lr": summary["lr"],
                "epochs": summary["epochs"],
                "curve": curves[place(run)],
                "best_val": summary["val_perplexity"],
                "test": summary["test_perplexity"],
            }
        )
    return pd.DataFrame(rows)


def epochs_until(values: list[float], target: float) -> int | None:
    return next((i for i, v in enumerate(values, 1) if v <= target * WITHIN), None)


def count(runs: pd.DataFrame) -> pd.DataFrame:
    runs = runs.copy()
    reached = runs.groupby(["tau", "seed"])["best_val"].transform("min")
    for column, target in (("to_best_of_all", reached), ("to_own_best", runs["best_val"])):
        counts = [epochs_until(c, t) for c, t in zip(runs["curve"], target, strict=True)]
        runs[column] = pd.array(counts, dtype="Int64")
    return runs.drop(columns="curve")


def markdown(runs: pd.DataFrame) -> str:
    """τ down; for each way: best validation perplexity (mean over seeds), epochs to within 1 % of the best of all
    and of its own (seed by seed)."""
    head = ["τ"]
    for way in WAYS.values():
        head += [way, "of all", "of own"]
    lines = [head, ["---"] * len(head)]
    for tau, at in runs.groupby("tau"):
        row = [format_tau(tau)]
        for way in WAYS:
            seeds = at[at["way"] == way].sort_values("seed")
            row.append(f"{seeds['best_val'].mean():,.2f}")
            for column in ("to_best_of_all", "to_own_best"):
                row.append(" / ".join("never" if pd.isna(n) else str(n) for n in seeds[column]))
        lines.append(row)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw(runs: pd.DataFrame) -> Figure:
    """Left: best validation perplexity, a line a way (mean over seeds). Right: epochs, a mark a run; what never
    comes within 1 % stands in a row of its own above."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10.4, 4.4))
        taus = sorted(runs["tau"].unique())
        place = {tau: i for i, tau in enumerate(taus)}
        quality, speed = figure.subplots(1, 2)
        best = runs["best_val"].min()
        top = best * 1.25
        longest = runs["epochs"].max()
        never = longest * 1.12
        speed.axhspan(longest * 1.05, longest * 1.19, color="#f0f0f0", zorder=0)
        for n, (way, label) in enumerate(WAYS.items()):
            at = runs[runs["way"] == way].sort_values("tau")
            mark = {"color": GROUPS[n], "marker": MARKERS[n], "markersize": 5}
            mean = at.groupby("tau")["best_val"].mean()
            x = [place[t] for t in mean.index]
            quality.plot(x, mean, linewidth=1.5, label=label, **mark)
            for tau, value in mean[mean > top].items():
                quality.annotate(
                    f"{value:,.0f}",
                    (place[tau], 0.985),
                    xycoords=("data", "axes fraction"),
                    ha="center",
                    va="top",
                    color=GROUPS[n],
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
                )
            aside = 0.17 * (n - (len(WAYS) - 1) / 2)
            height = [never if pd.isna(e) else e for e in at["to_best_of_all"]]
            speed.plot([place[t] + aside for t in at["tau"]], height, linestyle="none", **mark)
        quality.set_ylim(best * 0.985, top)
        quality.set_ylabel("best validation perplexity")
        quality.set_title("What is reached")
        speed.set_ylim(0, longest * 1.19)
        ticks = list(range(0, longest + 1, 10))
        speed.set_yticks([*ticks, never], [*map(str, ticks), "never"])
        speed.set_ylabel("epochs")
        speed.set_title("Epochs to within 1 % of the best of all ways at this τ")
        for ax in (quality, speed):
            ax.set_xticks(range(len(taus)), [format_tau(t) for t in taus])
            ax.set_xlabel("precision τ")
        figure.legend(*quality.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return figure


def main() -> None:
    if (RUNS[0].folder / "metrics.csv").is_file():
        write_curves()
    runs = read_runs()
    ways = count(runs[runs["way"].isin(WAYS)])
    draw(ways).savefig(HERE / "epochs.png")
    print(markdown(ways))
    print("rates at τ = 10⁴")
    rates = runs[(runs["tau"] == 1e4) & (runs["way"] != "path")].drop_duplicates(["form", "lr", "seed"])
    rates["to_own_best"] = [epochs_until(c, min(c)) for c in rates["curve"]]
    rates["lr over prior's sd"] = rates["lr"] * math.sqrt(1e4)
    rates = rates.drop(columns=["curve", "way"]).sort_values(["form", "lr", "seed"])
    print(rates.to_markdown(index=False))


if __name__ == "__main__":
    main()
