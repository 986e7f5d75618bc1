"""One run, top to bottom: data → model → fit → test → the run directory's files."""

import logging
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pandas as pd
import torch

from bora.config.schema import Config
from bora.data.corpus import Corpus
from bora.data.module import TaskDataModule
from bora.data.prompts import whole_texts
from bora.data.tokens import Tokens
from bora.lib.console import above_bars, tell
from bora.lib.machine import device_type, is_first_process
from bora.lib.stopping import stopping
from bora.model.loading import backbone_sha256, load_backbone, tokenizer_sha256
from bora.model.pretrained import Pretrained
from bora.runs.checkpoints import check_same_run, load_own
from bora.runs.directory import METRICS, SUMMARY, UNITS, RunDirectory, settings
from bora.runs.metrics import MetricsFile
from bora.runs.trackers.open import open_tracker
from bora.runs.trackers.tracker import TRACKED_RUN, Start, log10_tau
from bora.runs.values import json_safe, write_csv
from bora.train.build import build_data, build_model, build_module, find_seen, find_start, load_corpus, require_hardware
from bora.train.dashboard import show_end
from bora.train.loggers import RunLogger
from bora.train.module import TrainingModule
from bora.train.processes import claim_together
from bora.train.results import collect_results, describe_run, describe_units
from bora.train.temperature import FitTemperature
from bora.train.trainer import Fitter, build_fitter

log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """What `bora run` prints about a finished run.

    Attributes:
        summary: as in summary.json.
        tracked: where its tracker shows it; empty if nowhere.
        prompt: the beginning of a document of the first task; empty for a run that had already finished.
    """

    summary: dict[str, Any]
    tracked: str = ""
    prompt: str = ""


class RunParts(NamedTuple):
    """The parts of a run.

    Attributes:
        pretrained: the frozen model and its tokenizer.
        corpus, data: the documents, and their batches.
        module: the model as Lightning trains it.
        about: see `describe_run`.
        fingerprint: what decides the run's numbers; a checkpoint with another fingerprint is refused.
    """

    pretrained: Pretrained
    corpus: Corpus
    data: TaskDataModule
    module: TrainingModule
    about: dict[str, Any]
    fingerprint: dict[str, Any]


def train(
    cfg: Config,
    directory: RunDirectory,
    group: str,
    name: str,
    overrides: Sequence[str] = (),
    table: pd.DataFrame | None = None,
    write_samples: Callable[..., pd.DataFrame] | None = None,
) -> Trained:
    """Train, test and write a run.

    Args:
        cfg: from bora.config.parse.parse.
        directory: where the run's files go.
        group, name: the tracker's group and name for the run.
        overrides: the overrides that the run was started with; see RunDirectory.claim.
        table: the documents for data=frame, columns task, text, date.
        write_samples: bora.use.samples.sample_texts, which this folder may not import; None for no texts in the tracker.

    Raises:
        UserError: the input cannot be used, which is found before training starts; or see `Fitter.fit`.
        Stopped: a signal stopped the run; the same config and directory resume it.
    """
    silence_warnings()
    with (
        own_modes(cfg),
        keep_random_state(),
        stopping() as stop,
        claim_together(directory, cfg, overrides) as (directory, finished),
    ):
        if finished:
            log.info("this run has already finished")
            _warn_of_later_data(cfg, directory)
            return Trained(directory.summary())
        parts = build(cfg, table)
        pretrained, corpus, data, module = parts.pretrained, parts.corpus, parts.data, parts.module
        tokens = Tokens.of(cfg.data, *pretrained)
        checkpoint, resume_from = {}, directory.last if directory.last.is_file() else None
        if resume_from is not None:
            checkpoint = load_own(resume_from)
            check_same_run(checkpoint, parts.fingerprint, resume_from)
        metrics = None
        if is_first_process():
            write_documents(cfg, directory, corpus)
            metrics = MetricsFile(directory.path / METRICS, checkpoint)
        start = describe_start(cfg, parts, directory, group, name, checkpoint)
        del checkpoint  # Lightning reads the file itself
        with open_tracker(cfg.logger, start) as tracker, above_bars():
            temperature = FitTemperature(cfg, tokens, corpus)
            logger = RunLogger(metrics, tracker)
            fitter = build_fitter(cfg, directory, logger, module.monitor, parts.fingerprint, stop, temperature)
            learned = fitter.fit(module, data, resume_from)
            best = fitter.progress.best
            at = "" if cfg.trainer.val_check_interval is None else f" (step {best.step:,})"
            tell(f"testing the best epoch, {best.epoch}{at}")
            # The model is now the best epoch's, chosen by validation. Test documents are read only here, once.
            fitter.trainer.test(module, data, verbose=False)
            per_task, results = collect_results(module, corpus, learned)
            summary = parts.about | results | describe_training(fitter, temperature)
            write_results(directory, fitter, module, per_task, summary)
            if tracker is not None:
                samples, strategy = None, fitter.trainer.strategy
                if write_samples is not None and cfg.logger.samples and fitter.trainer.world_size == 1:
                    module.model.to(strategy.root_device)  # Lightning has moved it back to the CPU
                    samples = partial(
                        write_samples, module.model, pretrained.tokenizer, cfg, directory, corpus.documents
                    )
                show_end(tracker, directory, getattr(cfg.logger, "artifact", False), samples)
        first = corpus.documents[corpus.documents["task"] == corpus.task_names[0]]
        tracked = "" if tracker is None or tracker.failed else tracker.where
        return Trained(summary, tracked, tokens.example(first.head(1)))


def build(cfg: Config, table: pd.DataFrame | None) -> RunParts:
    """Load the backbone and the documents, and build the parts of the run.

    Raises:
        UserError: this machine lacks something that the run needs, or the model or the documents cannot be used.
    """
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    require_hardware(cfg)
    if cfg.init_from is not None:
        find_start(cfg.init_from)  # fails early, before the model and the documents are read
    tell(f"loading the model {cfg.model.name} and the documents of {cfg.data.name}")
    pretrained = load_backbone(cfg.model, cfg.trainer.accelerator, cfg.data.max_tokens)
    backbone = backbone_sha256(pretrained.model)
    corpus = load_corpus(cfg, pretrained, table)
    tell(corpus.describe())
    data = build_data(cfg, pretrained, corpus)
    module = build_module(cfg, build_model(cfg, pretrained, corpus.task_names, data))
    form = module.model.adapters.name
    if form != cfg.prior.parameterization:
        log.info("at tau=%s the %s form is trained (not %s)", cfg.task_tau, form, cfg.prior.parameterization)
    hashes = {"backbone_sha256": backbone, "tokenizer_sha256": tokenizer_sha256(pretrained.tokenizer)}
    about = describe_run(cfg, module, corpus) | hashes
    fingerprint = settings(cfg) | {"corpus or tokenizer": corpus.tokens_sha256(), "backbone": backbone}
    return RunParts(pretrained, corpus, data, module, about, fingerprint)


def write_documents(cfg: Config, directory: RunDirectory, corpus: Corpus) -> None:
    """Write documents.csv, and trained_on.txt, the texts that the run is trained on or chosen by."""
    directory.write_documents(corpus.documents)
    own = whole_texts(corpus.documents)[corpus.documents["split"] != "test"]
    directory.write_trained_on(own, find_seen(cfg, corpus))


def describe_start(
    cfg: Config, parts: RunParts, directory: RunDirectory, group: str, name: str, checkpoint: dict[str, Any]
) -> Start:
    """Describe the run to a tracker.

    Args:
        group, name: see `train`.
        checkpoint: the checkpoint from which the run resumes, or empty.
    """
    about = parts.about
    place = {} if cfg.task_tau == "learn" else {"log10_tau": log10_tau(cfg.task_tau)}
    shown = json_safe(cfg.model_dump() | {"run": about | {"tau": cfg.task_tau}} | place)
    tau = cfg.task_tau if cfg.task_tau == "learn" else f"{cfg.task_tau:g}"
    tags = [about["parameterization"], about["model"], about["data"], f"tau={tau}"]
    id, step = checkpoint.get(TRACKED_RUN), checkpoint.get("global_step", 0)
    return Start(directory.path, group, name, shown, tags, id, step)


def describe_training(fitter: Fitter, temperature: FitTemperature) -> dict[str, Any]:
    """Describe how training went: the part of the summary without perplexities."""
    progress = fitter.progress
    return {
        "temperature": temperature.temperature,
        "temperature_note": temperature.note,
        "best_epoch": progress.best.epoch,
        "best_step": progress.best.step,
        "epochs": progress.epochs,
        "steps": fitter.trainer.fit_loop.epoch_loop.global_step,
        "train_tokens_per_second": round(progress.tokens_per_second, 1),
        "seconds": round(progress.wall_seconds, 1),
    }


def write_results(
    directory: RunDirectory, fitter: Fitter, module: TrainingModule, per_task: pd.DataFrame, summary: dict[str, Any]
) -> None:
    """Write a finished run's files, summary.json last, in the first process only."""
    adapters = module.model.adapters
    units = None if adapters.levels is None else describe_units(module)  # every process must compute it
    if fitter.trainer.is_global_zero:
        directory.write_per_task(per_task)
        directory.write_by_task(fitter.dashboard.by_task(adapters.task_names))
        if units is not None:
            write_csv(directory.path / UNITS, units)
        directory.write_summary(summary)
    fitter.trainer.strategy.barrier()  # from here on every process finds the run finished


def silence_warnings() -> None:
    """Silence library warnings about intended behaviour."""
    if not is_first_process():
        logging.getLogger("bora").setLevel(logging.ERROR)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "Found .* module.* in eval mode at the start of training",  # the frozen backbone
        ".*isinstance.treespec, LeafSpec.* is deprecated",
        "The '.*_dataloader' does not have many workers",  # tokens are in memory already
        "The number of training batches .* is smaller than the logging interval",
        # With several processes:
        "`broadcast_buffers` is deprecated",  # its successor would still broadcast them once
        "It is recommended to use .*sync_dist=True",  # the metrics have been summed over processes already
        "FSDP2-wrapped module .* returned a view tensor",  # nothing changes a block's output in place
    ):
        warnings.filterwarnings("ignore", message)


@contextmanager
def own_modes(cfg: Config) -> Iterator[None]:
    """Switch off the caller's `torch.inference_mode` and `torch.autocast`, such as a notebook cell's, in the context."""
    with torch.inference_mode(False), torch.autocast(device_type(cfg.trainer.accelerator), enabled=False):
        yield


@contextmanager
def keep_random_state() -> Iterator[None]:
    """Restore afterwards the state of this process's random generators on the CPU: torch's, NumPy's, Python's."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def _warn_of_later_data(cfg: Config, directory: RunDirectory) -> None:
    """Warn if the table was written after the run had finished, since a repeated sweep keeps such a run."""
    path = getattr(cfg.data, "path", None)
    file = None if path is None else Path(path).expanduser()
    if file is not None and file.is_file() and file.stat().st_mtime > (directory.path / SUMMARY).stat().st_mtime:
        log.warning(
            "%s was written after this run had finished, and may differ; to train on it give another folder", file
        )
