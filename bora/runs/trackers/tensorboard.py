"""Event files of TensorBoard. The package is imported only when it is used."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bora.config.schema import flatten
from bora.errors import UserError
from bora.runs.trackers.tracker import Start, Tracker


class TensorBoard(Tracker):
    """Event files in the run directory's tensorboard/."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a resumed run continues from the last checkpoint, whose figures must be on disk by then

    def _table(self, name: str, table: pd.DataFrame) -> None:
        with pd.option_context("display.max_colwidth", None):  # otherwise it cuts texts
            self.writer.add_text(name, table.to_html(index=False))

    def _close(self, failed: bool) -> None:
        self.writer.close()


def start_tensorboard(settings: Any, start: Start) -> TensorBoard:
    """Open an event file. TensorBoard hides earlier figures from the step on at which the run starts or resumes."""
    try:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams
    except ModuleNotFoundError as error:
        raise UserError(
            f"logger=tensorboard needs a package that is missing ({error}): pip install tensorboard"
        ) from error
    writer = SummaryWriter(str(start.directory / "tensorboard"), purge_step=start.step)
    values = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in flatten(start.config).items()}
    for part in hparams(values, dict.fromkeys(("val/perplexity", "test/perplexity"))):
        writer._get_file_writer().add_summary(part)
    return TensorBoard(writer)
