"""A finished run's files as tables, and how a notebook shows the run."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bora.api.show import table
from bora.bayes.levels import NONE
from bora.config.schema import Config, Dtype
from bora.lib.names import format_tau
from bora.runs.archive import read_run
from bora.runs.directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RunFiles:
    """The files of a finished run, as tables and a figure.

    Args:
        folder: the run directory.
        device: where the model computes, cpu | cuda.
        dtype: dtype of the backbone; None for the one that the run was trained in.

    Attributes:
        folder: the run directory, as given.
        summary: summary.json: tau, seed, perplexities, versions, ….

    Raises:
        UserError: there is no finished run in that folder. Each attribute also raises it if its file is damaged.
    """

    def __init__(self, folder: str | Path, device: str = "cpu", dtype: Dtype | None = None) -> None:
        self.folder = Path(folder).expanduser()
        self._directory, self._device, self._dtype = RunDirectory(self.folder.absolute()), device, dtype
        self.summary: dict[str, Any] = self._directory.summary()

    @property
    def tau(self) -> float:
        """The precision of the prior."""
        return float(self.summary["tau"])

    @cached_property
    def config(self) -> Config:
        """The run's config.yaml."""
        return self._directory.config()

    @property
    def per_task(self) -> pd.DataFrame:
        """per_task.csv: one row for each task, with its documents, perplexities and distance ‖θ_d − Θ‖."""
        return self._directory.per_task()

    @property
    def tasks(self) -> list[str]:
        """The D tasks."""
        return self.per_task["task"].tolist()

    @property
    def documents(self) -> pd.DataFrame:
        """documents.csv: one row for each document kept: row (of the frame, from 0), task, split, n_tokens, n_scored."""
        return self._directory.documents()

    @property
    def history(self) -> pd.DataFrame:
        """metrics.csv: one row for each validation: epoch (from 1), step, val/nll (nats a token), val/perplexity.

        train/nll is the mean over the epoch's logged steps, if there are any.
        """
        return self._directory.validations().dropna(axis=1, how="all").reset_index(drop=True)

    def similarity(self, groups: Mapping[str, str] | pd.Series | None = None) -> "Figure":
        """Draw which tasks deviate alike from Θ, with similar ones next to each other.

        Args:
            groups: task → its group, by which to colour; a series' name is the legend's title.

        Raises:
            UserError: there are fewer than three tasks, or tasks do not differ.
        """
        import matplotlib.pyplot  # noqa: F401  # makes notebooks show figures

        from bora.report.drawing import drawing_style
        from bora.report.figures import similarity
        from bora.report.fonts import find_fonts
        from bora.report.similarity import compare_tasks

        found = compare_tasks(read_run(self._directory.path))
        if groups is not None:
            chosen = pd.Series(groups).reindex(found.tasks).fillna(NONE)
            found = replace(found, column=str(chosen.name or ""), groups=chosen)
        fonts, _ = find_fonts(found.names)
        with drawing_style(fonts):
            return similarity(found)

    def _title(self) -> str:
        """Describe the run in a line."""
        n = self.summary["n_tasks"]
        parts = [f"τ = {format_tau(self.tau)}", f"{n} task{'s' * (n > 1)}"]
        if "test_perplexity" in self.summary:  # new tasks have no documents held out
            parts.append(f"perplexity {self.summary['val_perplexity']:.2f} in validation")
            parts.append(f"{self.summary['test_perplexity']:.2f} in test")
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}: {self._title()})"

    def _repr_html_(self) -> str:
        columns = {
            "task": "task",
            "n_train": "training documents",
            "val_perplexity": "validation perplexity",
            "test_perplexity": "test perplexity",
            "distance": "‖θ−Θ‖",
        }
        rows = self.per_task[list(columns)].rename(columns=columns).dropna(axis=1, how="all")
        title = f"{self.folder}: {self._title()}"
        if "base_test_perplexity" in self.summary:
            title += f"; the frozen backbone's is {self.summary['base_test_perplexity']:.2f}"
        return table(title, rows)
