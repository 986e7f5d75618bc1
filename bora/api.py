"""BoRA from Python: a frame in, a trained model out.

import bora

result = bora.fit(frame, task="speaker", text="speech", model="opt_mini", tau=100)
result.per_task                         # a row a task, as per_task.csv
result.model.tasks["Pia Kjærsgaard"]    # one task's LoRA
"""

from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from hydra.errors import HydraException

from bora.commands.overrides import compose_config, quote
from bora.config import conf_folder
from bora.data.columns import Columns, finish, text_table
from bora.data.errors import input_errors
from bora.errors import UserError
from bora.lib.cache import digest
from bora.lib.stopping import Stopped
from bora.runs.directory import RunDirectory
from bora.train.run import train
from bora.use.restore import Restored, restore
from bora.use.samples import sample_texts

ARGUMENTS = {"task": "task=", "text": "text=", "date": "date="}  # in messages


def fit(
    frame: Any,
    *overrides: str,
    task: str | None = None,
    text: str = "text",
    date: str | None = None,
    model: str = "opt_mini",
    tau: float = 100,
    output: str | Path | None = None,
) -> Restored:
    """Train on a frame, one row a document, as `bora run` does on a table.

    Args:
        frame: a pandas or Polars DataFrame, or an Arrow table.
        overrides: anything else that can be set, in the command line's words: "lora.rank=8", "logger=wandb".
        task: column that names the task; None for the first of task, rep_name.
        text: column that holds the document.
        date: column with the date; None for `date` where there is one.
        model: a config of conf/model, or the hub name or folder of any causal language model.
        tau: precision of the prior, 0 to infinity.
        output: the run directory; None for outputs/<date>/<time>. A run that is finished there already, of the same
            frame and settings, is not done again.

    Returns:
        The best epoch's model, with the run's summary, per-task table and directory.

    Raises:
        UserError: a column, setting or document that cannot be used.
    """
    for column in (task, text, date):
        if column is not None and "${" in column:
            raise UserError(f"a column named {column!r} would be taken for an interpolation; rename it")
    table = documents(frame, task, text, date)
    known = (conf_folder() / "model" / f"{model}.yaml").is_file() and not model.startswith("_")
    chosen = [f"model={model}"] if known else ["model=hub", f"model.path={quote(model)}"]
    words = ["data=frame", *chosen, f"tau={tau}", "logger=none", *overrides]
    try:
        cfg, _ = compose_config(words)
    except HydraException as error:
        raise UserError(" ".join(str(error).split())) from error
    # What tells this frame from another, where a folder holds a finished run already.
    sha256 = digest("frame", table[["task", "text", "date"]].to_numpy().ravel())
    cfg = cfg.model_copy(
        update={"data": cfg.data.model_copy(update={"task": task, "text": text, "date": date, "sha256": sha256})}
    )
    now = datetime.now()
    folder = Path(f"outputs/{now:%Y-%m-%d}/{now:%H-%M-%S}" if output is None else output).expanduser()
    if folder.is_file():
        raise UserError(f"output={folder} is a file; give a folder")
    try:
        train(cfg, RunDirectory(folder), cfg.name, folder.name, words, table, sample_texts)
        return restore(folder)
    except Stopped as stopped:  # Ctrl-C, as a notebook knows it
        raise KeyboardInterrupt(str(stopped)) from None


def documents(frame: Any, task: str | None, text: str, date: str | None) -> pd.DataFrame:
    """Take a frame's columns task, text and date, as `bora.data.table.read` gives them; the index counts its rows.

    Raises:
        UserError: it is no frame, or a column is not there or holds what is no text.
    """
    with input_errors("the frame", ARGUMENTS):
        if isinstance(frame, pd.DataFrame):
            frame = frame.set_axis([str(c) for c in frame.columns], axis=1)
            names, parts = [*frame.columns], [frame]
        else:  # not by their to_pandas, which makes floats of integers with gaps
            arrow = _arrow(frame)
            names, parts = arrow.column_names, arrow.to_batches()
        return finish(text_table(parts, Columns(task, text, date).find(names)))


def _arrow(frame: Any) -> pa.Table:
    """
    Raises:
        UserError: it is no frame.
    """
    if hasattr(frame, "with_format"):  # a dataset of the datasets library
        frame = frame.with_format("arrow")[:]
    try:
        if hasattr(frame, "__arrow_c_stream__") or hasattr(frame, "__arrow_c_array__"):
            return pa.table(frame)
    except (TypeError, ValueError, pa.ArrowException):
        pass  # one column, say
    raise UserError(f"bora.fit takes a pandas or Polars DataFrame or an Arrow table, not {type(frame).__name__}")
