"""Which task the model takes a text for, from the evaluations that `bora evaluate` left in the runs' folders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bora.report.evidence import Evidence
from bora.runs.archive import RunRecord
from bora.runs.directory import DOCUMENTS
from bora.runs.values import readable
from bora.train.authorship import N_BINS, Likelihoods, log_prior

Sureness = tuple[np.ndarray, np.ndarray]  # the likeliest task's probability, and whether it is the true one, [N] each


@dataclass(frozen=True)
class Guesses:
    """The likeliest tasks of the N documents that an evaluation reports on.

    Attributes:
        folder: the evaluation's, below its run's.
        summary: its summary.json.
        truth, best: [N] tasks.
        sureness: with the run's temperature.
        sureness_at_1: by Bayes' rule alone; None where the temperature is 1, or the evaluation kept no likelihoods.
    """

    folder: Path
    summary: dict[str, Any]
    truth: pd.Series
    best: pd.Series
    sureness: Sureness
    sureness_at_1: Sureness | None

    def confusion(self, order: list[str]) -> np.ndarray:
        """Return the shares of each true task's documents that are taken for each task, [D, D]; nan without documents."""
        counts = pd.crosstab(self.truth, self.best).reindex(index=order, columns=order, fill_value=0)
        return counts.div(counts.sum(axis=1), axis=0).to_numpy()


def find_guesses(evidence: Evidence) -> Guesses | None:
    """Read the evaluation of most labelled documents, of the runs at the best τ between the limits; None without one."""
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
        if not summary["include_trained"]:  # those that it was trained on stand in the file alone
            documents = documents[documents["trained_on"].astype(str) != "True"]
        truth, best = documents["task"], documents["best"]
        sureness = documents["posterior"].to_numpy(float), (best == truth).to_numpy()
    at_1 = None if summary["temperature"] == 1 else _read_at_1(run, folder, summary["prior"], documents)
    return Guesses(folder, summary, truth, best, sureness, at_1)


def _read_at_1(run: RunRecord, folder: Path, prior: str, documents: pd.DataFrame) -> Sureness | None:
    """Compute the posterior by Bayes' rule from the table of likelihoods, if the evaluation kept it."""
    for file in folder.glob("likelihoods.*"):
        with readable(file):
            if file.suffix == ".csv":
                table = pd.read_csv(file, dtype={"task": str}, keep_default_na=False)
            else:
                table = pd.read_parquet(file)
            nats = table.pivot(index="row", columns="task", values="log_likelihood").loc[documents["row"]]
            prior_nats = log_prior(run.per_task["n_train"][nats.columns].to_numpy(), prior)
            scores = Likelihoods(nats.to_numpy(), documents["n_scored"].to_numpy())
            posterior = np.exp(scores.posterior(prior_nats)[0])
            best = nats.columns.to_numpy()[posterior.argmax(axis=1)]
            return posterior.max(axis=1), best == documents["task"].to_numpy()
    return None


def reliability(sureness: Sureness) -> pd.DataFrame:
    """Sort documents into the bins of the calibration error: each one's mean probability, accuracy and n."""
    probability, right = sureness
    bins = np.clip(np.ceil(probability * N_BINS), 1, N_BINS).astype(int)
    table = pd.DataFrame({"probability": probability, "accuracy": right, "n": 1})
    return table.groupby(bins).agg({"probability": "mean", "accuracy": "mean", "n": "sum"})
