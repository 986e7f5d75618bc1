"""Print what a level brings against the best τ without it: paired nats a token, 95 % bootstrap over tasks."""

import sys
from pathlib import Path

import pandas as pd

from bora.lib.names import format_tau
from bora.report.series import read_runs
from bora.runs.archive import RunRecord
from experiments.compare import difference

HERE = Path(__file__).parent


def mean(runs: dict[int, RunRecord], figure: str) -> float:
    """Average a figure of the summaries."""
    return sum(run.summary[figure] for run in runs.values()) / len(runs)


def compare(corpus: str, runs: list[RunRecord]) -> list[dict]:
    """A row for each τ of the tasks and the level, beside the τ without the level that validation chooses."""
    settings: dict[tuple, dict[int, RunRecord]] = {}
    for run in runs:
        taus = (*run.summary.get("levels", {}).values(), run.tau)
        settings.setdefault(taus if run.learned is None else ("learned",) * len(taus), {})[run.seed] = run
    without = min((k for k in settings if len(k) == 1), key=lambda k: mean(settings[k], "val_perplexity"))
    rows = []
    for setting, own in sorted(settings.items(), key=lambda each: (len(each[0]), "learned" in each[0], each[0])):
        seeds = sorted(own.keys() & settings[without].keys())
        names = [tau if tau == "learned" else format_tau(tau) for tau in setting]
        row = {"corpus": corpus, "τ": names[-1], "τ of the level": names[0] if len(names) == 2 else "–"}
        row |= {"seeds": str(len(own)), "validation": f"{mean(own, 'val_perplexity'):.2f}"}
        row["test"] = f"{mean(own, 'test_perplexity'):.2f}"
        row["against the best without"] = ""
        if setting != without and seeds:
            pairs = [(own[seed], settings[without][seed]) for seed in seeds]
            row["against the best without"] = f"{difference(pairs):+.4f}"
        rows.append(row)
    return rows


def main() -> None:
    """Print a row a corpus and setting."""
    found, _ = read_runs([HERE / "runs.csv.gz", *map(Path, sys.argv[1:])])
    rows = []
    for name in sorted({run.config["name"] for run in found} & {"packages", "parties", "plays"}):
        own = [run for run in found if run.config["name"] == name]
        if name == "parties":  # those without the level are folketing's
            own += [run for run in found if run.config["name"] == "folketing-bfloat16"]
        rows += compare(name, own)
    sys.stdout.write(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True) + "\n")


if __name__ == "__main__":
    main()
