"""Train on a frame: one run, or a sweep of τ and seeds."""

from collections.abc import Sequence
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import pandas as pd
from hydra.errors import HydraException

from bora.api.frames import documents
from bora.api.runs import Run
from bora.api.settings import Settings, model_overrides, to_overrides, to_word
from bora.api.sweeps import Sweep
from bora.commands.exits import describe_error
from bora.config.compose import compose_config, format_value, recorded
from bora.config.schema import Config, FrameData
from bora.data.read import columns_of
from bora.errors import UserError
from bora.lib.cache import digest
from bora.lib.machine import device_type, is_first_process
from bora.lib.stopping import Stopped
from bora.runs.directory import RunDirectory
from bora.runs.sweep import record_failure
from bora.train.run import train
from bora.use.samples import sample_texts


class Job(NamedTuple):
    """A run to train: its checked config, and what was given for it, as on the command line."""

    cfg: Config
    overrides: list[str]


def fit(
    frame: Any,
    *,
    task: str | None = None,
    text: str = "text",
    date: str | None = None,
    prompt: str | None = None,
    messages: str | None = None,
    levels: Sequence[str] = (),
    model: str | Path = "opt_mini",
    tau: float | Literal["learn"] | Sequence[float] = 100,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    **settings: Unpack[Settings],
) -> Run:
    """Train on a frame with one row for each document, as `bora run` does on a table.

    Args:
        frame: a pandas or Polars DataFrame, or an Arrow table.
        task: column that names the task; None for the first of task, rep_name.
        text: column that holds the document.
        date: column with the date; None for `date` if there is one.
        prompt: unscored text before each document, with {column} for a cell: "Article: {article}\\nHeadline: ".
        messages: column that holds a chat, instead of `text`.
        levels: columns above the task, or across it, whose values have their own deviations: ["party"].
        model: a config of conf/model, or the hub name or folder of any causal language model.
        tau: precision of the prior, 0 to infinity; or "learn", which finds it on validation documents. With levels also
            a list, the task's first.
        output: the run's folder; None for outputs/<date>/<time>. A finished run of the same frame
            and settings there is returned; an interrupted one is resumed.
        overrides: any other settings, as on the command line: ["optim.patience=3", "logger=wandb"].
        settings: seed, n_tasks, min_documents, documents_per_task, max_tokens, batch_size, rank, lr, max_epochs,
            device (cpu | cuda | auto); see Settings.

    Returns:
        The finished run; its model is the epoch that validation chose.

    Raises:
        UserError: a column, setting or document cannot be used, or training diverged.
        KeyboardInterrupt: interrupted; the same call resumes the run if `output` is given.
    """
    own = {"task": task, "text": text, "date": date, "prompt": prompt, "messages": messages, "levels": levels}
    table, (job,) = _read(frame, [_configure(own, model, {**settings, "tau": tau}, overrides)])
    now = datetime.now()
    if output is None and job.cfg.trainer.strategy != "auto":
        raise UserError(
            "trainer=ddp and fsdp need output=: each process runs this script, and must find the same folder"
        )
    folder = _folder(f"outputs/{now:%Y-%m-%d}/{now:%H-%M-%S}" if output is None else output)
    return _train(job, table, folder, group=job.cfg.name)


def sweep(
    frame: Any,
    tau: Sequence[float | Literal["learn"] | Sequence[float]],
    seeds: Sequence[int] = (0,),
    *,
    task: str | None = None,
    text: str = "text",
    date: str | None = None,
    prompt: str | None = None,
    messages: str | None = None,
    levels: Sequence[str] = (),
    model: str | Path = "opt_mini",
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    **settings: Unpack[Settings],
) -> Sweep:
    """Train a run for each τ and seed, one after another, into one folder, as `bora run -m tau=… seed=…` does.

    All settings are checked before the first run begins. Finished runs are skipped and interrupted ones resumed, so the
    same call continues a sweep. A run that fails does not stop the others.

    Args:
        tau: values of `fit`'s tau.
        seeds: seeds of the LoRAs' initial values and the training order; the split is the same for all.
        output: the sweep's folder; None for multirun/<data>-<model>.
        frame, task, text, date, prompt, messages, levels, model, overrides, settings: see `fit`.

    Returns:
        The finished runs, and a line for each that failed.

    Raises:
        UserError: a column, setting or document cannot be used; the folder holds runs with other settings; or no run
            finished.
        KeyboardInterrupt: interrupted; the same call resumes the sweep.
    """
    if "seed" in settings:
        raise UserError("bora.sweep takes seeds=[…], not seed=")
    own = {"task": task, "text": text, "date": date, "prompt": prompt, "messages": messages, "levels": levels}
    for name, given in (("tau", tau), ("seeds", seeds)):
        if pd.api.types.is_scalar(given):
            raise UserError(f"bora.sweep takes a list: {name}=[{given!r}]")
    values = [{"tau": t, "seed": s} for t, s in product(tau, seeds)]  # once: they may be iterators
    if not values:
        raise UserError("bora.sweep needs at least one τ and one seed")
    table, configured = _read(frame, [_configure(own, model, {**settings, **one}, overrides) for one in values])
    # The names that a sweep on the command line has.
    jobs = {f"tau={format_value(job.cfg.tau)},seed={format_value(job.cfg.seed)}": job for job in configured}
    folder = _folder(f"multirun/{next(iter(jobs.values())).cfg.name}" if output is None else output)
    for place, job in jobs.items():
        RunDirectory(folder / place).refuse_other_settings(job.cfg)
    runs, failures = [], []
    for place, job in jobs.items():
        try:
            runs.append(_train(job, table, folder / place, group=folder.name))
            if is_first_process():
                print(runs[-1])
        except Exception as error:  # whatever it is, the others may succeed
            if is_first_process():
                record_failure(error, folder / place, describe_error(error))
            failures.append(f"{place}: {error if isinstance(error, UserError) else repr(error)}")
    if not runs:
        raise UserError("\n".join(failures))
    return Sweep(folder, runs, failures)


def _configure(
    own: dict[str, str | Sequence[str] | None], model: str | Path, settings: dict[str, Any], overrides: Sequence[str]
) -> Job:
    """Compose and check a run's config.

    Args:
        own: the frame's columns and the prompt, as in `fit`; None or empty if not given.
        settings: tau, and the keywords of Settings.
    """
    if isinstance(overrides, str) or not isinstance(overrides, Sequence):
        raise UserError(f"overrides is a list: overrides=[{overrides!r}]")
    tau = f"++tau={to_word(settings.pop('tau'))}"
    data = [f"++data.{name}={to_word(value)}" for name, value in own.items() if value is not None and value != ()]
    words = ["data=frame", *model_overrides(model), tau, "logger=none", *data, *to_overrides(settings), *overrides]
    try:
        return Job(compose_config(words)[0], recorded(words))
    except HydraException as error:
        raise UserError(" ".join(str(error).split())) from error


def _read(frame: Any, jobs: list[Job]) -> tuple[pd.DataFrame, list[Job]]:
    """Read a frame's documents, and write their hash into the configs of the runs on them."""
    data = jobs[0].cfg.data
    assert isinstance(data, FrameData)
    table = documents(frame, columns_of(data))
    # Identifies this frame, if a folder already holds a finished run.
    sha256 = digest("frame", table.to_numpy().ravel())
    of_it = [job.cfg.model_copy(update={"data": job.cfg.data.model_copy(update={"sha256": sha256})}) for job in jobs]
    return table, [job._replace(cfg=cfg) for job, cfg in zip(jobs, of_it, strict=True)]


def _folder(output: str | Path) -> Path:
    """Return an output folder; raise a UserError if it is a file."""
    folder = Path(output).expanduser()
    if folder.is_file():
        raise UserError(f"output={folder} is a file; give a folder")
    return folder


def _train(job: Job, table: pd.DataFrame, folder: Path, group: str) -> Run:
    """Train a run, or find it finished; raise a KeyboardInterrupt on a signal."""
    try:
        train(job.cfg, RunDirectory(folder), group, folder.name, job.overrides, table, sample_texts)
    except Stopped as stopped:  # as Ctrl-C does in a notebook
        raise KeyboardInterrupt(str(stopped)) from None
    return Run(folder, device_type(job.cfg.trainer.accelerator))
