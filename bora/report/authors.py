"""Find which task the model takes a text for, from evaluations by `bora evaluate` in the runs' folders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bora.report.evidence import Evidence
from bora.runs.archive import RunRecord
from bora.runs.directory import DOCUMENTS
from bora.runs.values import readable
from bora.train.authorship import N_BINS


@dataclass(frozen=True)
class Guesses:
    """The likeliest tasks of the N documents that an evaluation reports on.

    Attributes:
        folder: the evaluation's folder, inside its run's.
        summary: its summary.json.
        truth, best: [N] the true and the likeliest task.
        probability: [N] probability of the likeliest task, with the run's temperature.
    """

    folder: Path
    summary: dict[str, Any]
    truth: pd.Series
    best: pd.Series
    probability: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether the likeliest task is the true one, [N]."""
        return (self.best == self.truth).to_numpy()

    def reliability(self) -> pd.DataFrame:
        """Sort documents into the bins of the calibration error; return each bin's mean probability, accuracy and n."""
        bins = np.clip(np.ceil(self.probability * N_BINS), 1, N_BINS).astype(int)
        table = pd.DataFrame({"probability": self.probability, "accuracy": self.right, "n": 1})
        return table.groupby(bins).agg({"probability": "mean", "accuracy": "mean", "n": "sum"})

    def confusion(self, order: list[str]) -> np.ndarray:
        """Return the share of each true task's documents taken for each task, [D, D]; nan without documents."""
        counts = pd.crosstab(self.truth, self.best).reindex(index=order, columns=order, fill_value=0)
        return counts.div(counts.sum(axis=1), axis=0).to_numpy()


def find_guesses(evidence: Evidence) -> Guesses | None:
    """Read the evaluation with the most labelled documents among runs at the best middle τ; None if there is none."""
    tau = evidence.best_middle_tau
    found = [
        (run, folder, summary)
        for run in ([] if tau is None else evidence.series.at(tau))
        for folder, summary in run.evaluations()
        if summary.get("classification")
    ]
    return _read(*max(found, key=lambda each: each[2]["classification"]["n"])) if found else None


def _read(run: RunRecord, folder: Path, summary: dict[str, Any]) -> Guesses:
    with readable(folder / DOCUMENTS) as file:
        documents = pd.read_csv(file, dtype={"task": str, "best": str}, keep_default_na=False)
        documents = documents[documents["task"].isin(run.per_task.index) & (documents["n_scored"] > 0)]
        if not summary["include_trained"]:  # texts that the run was trained on are only listed
            documents = documents[documents["trained_on"].astype(str) != "True"]
        return Guesses(folder, summary, documents["task"], documents["best"], documents["posterior"].to_numpy(float))
