"""metrics.csv: a row a logged step or epoch, only ever added to, so that a run that goes on can cut it back exactly."""

import csv
import io
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from bora.errors import UserError, first_line
from bora.lib.files import require_regular_file, write_text_atomically
from bora.lib.processes import is_first

METRICS_BYTES, METRICS_CRC32 = "metrics_bytes", "metrics_crc32"  # in a checkpoint: of the file then
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


MEND = "put it back as it was, or begin anew with resume=never"


class MetricsFile(Logger):
    """A Lightning logger.

    Args:
        path: metrics.csv.
        checkpoint: that a run goes on from: what was written since it was made is cut off. Empty for a new run.

    Raises:
        UserError: the file is not what it was when the checkpoint was made.
    """

    def __init__(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        super().__init__()
        self.path = path
        if not is_first():
            return
        if METRICS_BYTES in checkpoint:
            kept = _read(path, checkpoint[METRICS_BYTES])
            self.crc32 = zlib.crc32(kept)
            if self.crc32 != checkpoint.get(METRICS_CRC32, self.crc32):
                raise UserError(f"{path} was changed since the last checkpoint; {MEND}")
            os.truncate(path, len(kept))
        else:
            write_text_atomically(path, _line(COLUMNS))
            self.crc32 = zlib.crc32(path.read_bytes())

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    def saved(self) -> dict[str, int]:
        """For a checkpoint: what was written so far, now on the disk."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            return {METRICS_BYTES: os.fstat(file.fileno()).st_size, METRICS_CRC32: self.crc32}

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
        line = _line([row.get(column, "") for column in COLUMNS]).encode("utf-8")
        with self.path.open("ab") as out:
            out.write(line)
        self.crc32 = zlib.crc32(line, self.crc32)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """They stand in config.yaml."""


def _read(path: Path, size: int) -> bytes:
    """The file's first so many bytes.

    Raises:
        UserError: there are not as many.
    """
    try:
        with require_regular_file(path).open("rb") as file:
            kept = file.read(size)
    except FileNotFoundError as error:
        raise UserError(f"{path} is gone, to which the interrupted run would add; {MEND}") from error
    except OSError as error:
        raise UserError(f"{path} is not readable: {first_line(error)}; {MEND}") from error
    if len(kept) < size:
        raise UserError(
            f"{path} has {len(kept)} bytes, where the last checkpoint was made after {size}; {MEND}"
        )
    return kept


def _line(values: Sequence[object]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()
