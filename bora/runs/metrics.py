"""metrics.csv: a row for each logged step or epoch. It is append-only, so a resumed run can truncate it exactly."""

import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bora.errors import UserError, first_line
from bora.lib.files import require_regular_file, write_text_atomically

METRICS_BYTES, METRICS_CRC32 = "metrics_bytes", "metrics_crc32"  # keys in a checkpoint: of the file at that time
OVERALL = ("nll", "perplexity", "perplexity_macro")
COLUMNS = [
    "epoch",
    "step",
    *(f"train/{part}" for part in ("loss", "likelihood", "prior", "nll")),
    "tokens/s",
    *(f"val/{name}" for name in OVERALL),
    *(f"val_by_batch/{name}" for name in ("nll", "perplexity")),  # with the published code's likelihood only
    "val/c",  # with tau=learn only
    *(f"test/{name}" for name in OVERALL),
    "base_test/perplexity",
    "lr",
    "grad_norm/tasks",
    "grad_norm/mean",
]
FIX = "restore the file, or restart with resume=never"


class MetricsFile:
    """Append rows to metrics.csv, and record its length and checksum for checkpoints.

    Args:
        path: metrics.csv.
        checkpoint: the one from which a run resumes; rows written after it are cut off. Empty for a new run.

    Raises:
        UserError: the file is not readable, or its first METRICS_BYTES bytes do not match the checkpoint's checksum.
    """

    def __init__(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        self.path = path
        if METRICS_BYTES in checkpoint:
            try:
                with require_regular_file(path).open("rb") as file:
                    kept = file.read(checkpoint[METRICS_BYTES])
            except OSError as error:
                raise UserError(f"{path} is needed to resume, but not readable: {first_line(error)}; {FIX}") from error
            self.crc32 = zlib.crc32(kept)
            if self.crc32 != checkpoint[METRICS_CRC32]:
                raise UserError(f"{path} was changed or truncated since the last checkpoint; {FIX}")
            os.truncate(path, len(kept))
        else:
            write_text_atomically(path, _line(COLUMNS))
            self.crc32 = zlib.crc32(path.read_bytes())

    def append(self, figures: Mapping[str, float], step: int) -> None:
        """Add a row; raise a ValueError if a figure has no column."""
        row: dict[str, Any] = {"step": step, **figures}
        unknown = row.keys() - set(COLUMNS)
        if unknown:
            raise ValueError(f"metrics.csv has no column {min(unknown)}")
        line = _line(row.get(column, "") for column in COLUMNS).encode("utf-8")
        with self.path.open("ab") as out:
            out.write(line)
        self.crc32 = zlib.crc32(line, self.crc32)

    def saved(self) -> dict[str, int]:
        """Flush the rows to disk, and return the file's length and checksum, for a checkpoint."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
            return {METRICS_BYTES: os.fstat(file.fileno()).st_size, METRICS_CRC32: self.crc32}


def _line(values: Iterable[object]) -> str:
    """Format values, none of which needs quotes, as one line of CSV."""
    return ",".join(map(str, values)) + "\n"
