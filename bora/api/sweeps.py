"""A sweep's finished runs as an object, and `load`."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bora.api.runs import Run, show_report
from bora.api.show import Report, table
from bora.config.schema import Dtype
from bora.errors import UserError
from bora.lib.names import format_tau
from bora.report.series import series_of
from bora.runs.archive import read_run
from bora.runs.directory import choosing_perplexity
from bora.runs.sweep import failed_runs, finished_runs


class Sweep:
    """Runs of the same experiment at several τ and seeds.

    If they differ in more than that, `by_tau`, `best_tau` and `best` raise a UserError.

    Attributes:
        folder: the sweep's folder.
        runs: the finished runs, by τ and seed.
        failures: a line for each run that failed.
    """

    def __init__(self, folder: Path, runs: Sequence[Run], failures: Sequence[str] = ()) -> None:
        self.folder, self.failures = folder, list(failures)
        self.runs = sorted(runs, key=lambda run: ("learned" in run.summary, run.tau, run.summary["seed"]))

    @property
    def table(self) -> pd.DataFrame:
        """The runs, one row for each: tau, seed, lr, val_perplexity, test_perplexity, best_epoch, run (its folder)."""
        keys = ["tau", "seed", "lr", "val_perplexity", "test_perplexity", "best_epoch"]
        rows = [{key: run.summary[key] for key in keys} | {"run": str(run.folder)} for run in self.runs]
        return pd.DataFrame(rows)

    @property
    def by_tau(self) -> pd.DataFrame:
        """Averages over seeds, one row for each τ ("learn" if it was learned).

        The columns: tau, val_perplexity, which chooses τ, test_perplexity, and the number of runs.
        """
        series, _ = series_of([read_run(run.folder) for run in self.runs])
        if len(series) > 1:
            labels = "; ".join(one.label for one in series)
            raise UserError(f"{self.folder} holds several experiments ({labels}); its report shows each separately")
        values = [(_given_tau(r), choosing_perplexity(r.summary), r.summary["test_perplexity"]) for r in self.runs]
        groups = pd.DataFrame(values, columns=["tau", "val_perplexity", "test_perplexity"]).groupby("tau", sort=False)
        return groups.mean().assign(runs=groups.size()).reset_index()

    @property
    def best_tau(self) -> float | str:
        """The τ with the lowest mean validation perplexity over seeds; "learn" if all runs learned it.

        If there are given τ, a learned one is not chosen, since its c was fitted to the documents that would choose.
        """
        rows = self.by_tau.to_dict("records")
        return min(rows, key=lambda row: (row["tau"] == "learn", row["val_perplexity"]))["tau"]

    @property
    def best(self) -> Run:
        """The run at `best_tau` with the lowest validation perplexity."""
        tau = self.best_tau
        return min((r for r in self.runs if _given_tau(r) == tau), key=lambda r: choosing_perplexity(r.summary))

    def report(self, output: str | Path | None = None) -> Report:
        """Write a report of all runs in the folder to `output`, by default report/ in it; see `Run.report`."""
        return show_report(self.folder, output)

    def __repr__(self) -> str:
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"Sweep({str(self.folder)!r}: {len(self.runs)} runs{failed}, {self._choice()})"

    def _repr_html_(self) -> str:
        try:
            rows = self.by_tau
        except UserError:
            rows = self.table
        names = {"tau": "τ", "val_perplexity": "validation perplexity", "test_perplexity": "test perplexity"}
        rows = rows.assign(tau=rows["tau"].map(format_tau)).rename(columns=names)
        return table("\n".join([f"{self.folder}: {len(self.runs)} runs, {self._choice()}", *self.failures]), rows)

    def _choice(self) -> str:
        try:
            return f"τ = {format_tau(self.best_tau)} is best in validation"
        except UserError:
            return "of several experiments"


def _given_tau(run: Run) -> float | str:
    return "learn" if "learned" in run.summary else run.tau


def load(folder: str | Path, device: str = "cpu", dtype: Dtype | None = None) -> Run | Sweep:
    """Load a finished run, or the finished runs below a sweep's folder.

    Args:
        folder: a run directory, or a folder with some below it.
        device: where the model computes, cpu | cuda.
        dtype: dtype of the backbone; None for the one that the run was trained in.

    Raises:
        UserError: there is no finished run.
    """
    folder = Path(folder).expanduser()
    try:
        return Run(folder, device, dtype)
    except UserError:
        found, _, unreadable = finished_runs(folder)
        if found.empty:
            raise
    failures = [f"{Path(file).parent}: {failure['error']}" for file, failure in failed_runs(folder).items()]
    return Sweep(folder, [Run(folder / place, device, dtype) for place in found["run"]], unreadable + failures)
