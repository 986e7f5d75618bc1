"""Tabulate scores of answers by τ, from evaluations by `bora evaluate --answers` in the runs' folders."""

import math
from pathlib import Path

import pandas as pd

from bora.lib.names import format_tau
from bora.report.evidence import Evidence
from bora.report.tables import ReportTable

# Score → its name in the table.
SCORES = {"exact_match": "exact match", "rouge1": "ROUGE-1", "rougeL": "ROUGE-L", "chrf": "chrF"}
SCORES |= {"mae": "MAE", "rmse": "RMSE"}
WHO = {"task": "θ of the task", "mean": "Θ", "base": "frozen backbone"}


def find_answers(evidence: Evidence) -> dict[str, list[tuple[float, Path, dict]]]:
    """Find evaluations with answers in the series' runs: evaluation's name → τ, folder and summary of each."""
    found: dict[str, list[tuple[float, Path, dict]]] = {}
    for run in evidence.series.runs:
        for folder, summary in run.evaluations():
            if summary.get("answers"):
                found.setdefault(folder.name, []).append((run.tau, folder, summary))
    return found


def answers_table(name: str, found: list[tuple[float, Path, dict]]) -> ReportTable:
    """Tabulate the scores of one evaluation from `find_answers` by τ, means over tasks and then over seeds."""
    rows = [
        {"tau": tau, "who": who, **{score: means[score]["value"] for score in SCORES if score in means}}
        for tau, _, summary in found
        for who, means in summary["answers"].items()
        if who in WHO and not (who == "mean" and math.isinf(tau))  # where every task is Θ
    ]
    groups = pd.DataFrame(rows).groupby(["who", "tau"], sort=False)
    data = groups.mean().assign(runs=groups.size()).reset_index()
    data = data.sort_values(["who", "tau"], key=lambda cells: cells.map([*WHO].index) if cells.name == "who" else cells)
    cells = pd.DataFrame({"who answers": data["who"].map(WHO), "τ": data["tau"].map(format_tau)})
    for score in data.columns.intersection([*SCORES], sort=False):
        cells[SCORES[score]] = data[score].map("{:.3f}".format)
    cells["runs"] = data["runs"].astype(str)
    caption = (
        f"Answers to the prompts of {name}: means over tasks, then over seeds. The runs' own pages have intervals."
    )
    return ReportTable(f"answers-{name}", data, cells, cells == "", caption)
