"""metrics.csv: a row a logged step or epoch, only ever added to, so that a run that goes on can cut it back exactly."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from bora.processes import is_first

METRICS_BYTES = "metrics_bytes"  # in a checkpoint: the file's length then
OVERALL = ("nll", "perplexity", "perplexity_macro")
COLUMNS = [
    "epoch",
    "step",
    *(f"train/{part}" for part in ("loss", "likelihood", "prior", "nll")),
    "tokens/s",
    *(f"val/{name}" for name in OVERALL),
    *(f"val_by_batch/{name}" for name in ("nll", "perplexity")),  # of the published code's likelihood alone
    *(f"test/{name}" for name in OVERALL),
    "base_test/perplexity",
]


class MetricsFile(Logger):
    """A Lightning logger.

    Args:
        path: metrics.csv.
        keep: bytes to keep of a file that is there: its `size` when the checkpoint was made that a run goes on from.
    """

    def __init__(self, path: Path, keep: int | None = None) -> None:
        super().__init__()
        self.path = path
        if not is_first():
            return
        if keep is None or not path.is_file() or path.stat().st_size < keep:
            path.write_text(_line(COLUMNS), "utf-8")
        else:
            os.truncate(path, keep)

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row.

        Raises:
            ValueError: a metric that has no column.
        """
        row: dict[str, Any] = {"step": step, **metrics}
        unknown = row.keys() - set(COLUMNS)
        if unknown:
            raise ValueError(f"metrics.csv has no column {min(unknown)}")
        with self.path.open("a", encoding="utf-8") as out:
            out.write(_line([row.get(column, "") for column in COLUMNS]))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """They stand in config.yaml."""


def _line(values: Sequence[object]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()
