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
from bora.data.prompts import whole_texts
from bora.data.tokens import Tokens
from bora.lib.console import above_bars, tell
from bora.lib.machine import is_first_process
from bora.lib.stopping import stopping
from bora.model.loading import backbone_sha256, load_backbone
from bora.runs.checkpoints import check_same_run, load_own
from bora.runs.directory import METRICS, SUMMARY, UNITS, RunDirectory, json_safe, settings, versions, write_csv
from bora.runs.metrics import MetricsFile
from bora.runs.trackers import TRACKED_RUN, Start, log10_tau, open_tracker
from bora.train.build import build_data, build_model, build_module, find_seen, find_start, load_corpus, require_hardware
from bora.train.dashboard import show_end
from bora.train.loggers import RunLogger
from bora.train.module import TrainingModule
from bora.train.processes import claim_together
from bora.train.temperature import FitTemperature
from bora.train.trainer import build_fitter

log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """What `bora run` prints of a finished run.

    Attributes:
        summary: as in summary.json.
        tracked: where its tracker shows it; empty where there is nothing to say.
        prompt: the beginning of a document of the first task; empty for a run that was finished already.
    """

    summary: dict[str, Any]
    tracked: str = ""
    prompt: str = ""


def train(
    cfg: Config,
    directory: RunDirectory,
    group: str,
    name: str,
    overrides: Sequence[str] = (),
    table: pd.DataFrame | None = None,
    write_samples: Callable[..., pd.DataFrame] | None = None,
) -> "Trained":
    """Train, test and write a run.

    Args:
        cfg: from bora.config.parse.parse.
        directory: where the run's files go.
        group, name: of the W&B run.
        overrides: that the run was started with; see RunDirectory.claim.
        table: columns task, text, date; for data=frame.
        write_samples: bora.use.samples.sample_texts, which stands above this folder; None for no texts in the tracker.

    Raises:
        UserError: the input cannot be used; before training starts, unless training diverges.
        Stopped: by a signal; with the same config and directory it resumes.
    """
    silence_warnings()
    with keep_random_state(), stopping() as stop, claim_together(directory, cfg, overrides) as (directory, finished):
        if finished:
            log.info("this run is finished already")
            _warn_of_later_data(cfg, directory)
            return Trained(directory.summary())
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
        model = build_model(cfg, pretrained, corpus.task_names, data)
        form = model.adapters.name
        if form != cfg.prior.parameterization:
            log.info("at tau=%s the %s form is trained (not %s)", cfg.task_tau, form, cfg.prior.parameterization)
        module = build_module(cfg, model)
        about = describe_run(cfg, module, corpus) | {"backbone_sha256": backbone}
        fingerprint = settings(cfg) | {"corpus or tokenizer": corpus.tokens_sha256(), "backbone": backbone}
        checkpoint, resume_from = {}, directory.last if directory.last.is_file() else None
        if resume_from is not None:
            checkpoint = load_own(resume_from)
            check_same_run(checkpoint, fingerprint, resume_from)
        if is_first_process():
            directory.write_documents(corpus.documents)
            own = whole_texts(corpus.documents)[corpus.documents["split"] != "test"]
            directory.write_trained_on(own, find_seen(cfg, corpus))
        metrics = MetricsFile(directory.path / METRICS, checkpoint) if is_first_process() else None
        id, step = checkpoint.get(TRACKED_RUN), checkpoint.get("global_step", 0)
        place = {} if cfg.task_tau == "learn" else {"log10_tau": log10_tau(cfg.task_tau)}
        shown = json_safe(cfg.model_dump() | {"run": about | {"tau": cfg.task_tau}} | place)
        tau = cfg.task_tau if cfg.task_tau == "learn" else f"{cfg.task_tau:g}"
        tags = [form, about["model"], about["data"], f"tau={tau}"]
        start = Start(directory.path, group, name, shown, tags, id, step)
        with open_tracker(cfg.logger, start) as tracker, above_bars():
            del checkpoint  # Lightning reads it itself
            logger = RunLogger(metrics, tracker)
            temperature = FitTemperature(cfg, Tokens.of(cfg.data, *pretrained), corpus)
            fitter = build_fitter(cfg, directory, logger, module.monitor, fingerprint, stop, temperature)
            trainer, progress = fitter.trainer, fitter.progress
            learned = fitter.fit(module, data, resume_from)
            best = progress.best
            at = "" if cfg.trainer.val_check_interval is None else f" (step {best.step:,})"
            tell(f"testing the best epoch, {best.epoch}{at}")
            # The model is the best epoch's on validation; only now is test read, and once.
            trainer.test(module, data, verbose=False)
            per_task, summary = collect_results(module, corpus)
            if learned is not None:
                per_task["c"] = learned.pop("c_by_task")
                summary |= {"tau": learned["tau"], "learned": learned}
                if model.adapters.levels is not None:
                    summary["levels"] = {name: level["tau"] for name, level in learned.get("levels", {}).items()}
            summary |= {
                "temperature": temperature.temperature,
                "temperature_note": temperature.note,
                "best_epoch": best.epoch,
                "best_step": best.step,
                "epochs": progress.epochs,
                "steps": trainer.fit_loop.epoch_loop.global_step,
                "train_tokens_per_second": round(progress.tokens_per_second, 1),
                "seconds": round(progress.wall_seconds, 1),
            }
            summary = about | summary
            units = None if model.adapters.levels is None else describe_units(module)
            if trainer.is_global_zero:
                directory.write_per_task(per_task)
                directory.write_by_task(fitter.dashboard.by_task(corpus.task_names))
                if units is not None:
                    write_csv(directory.path / UNITS, units)  # a row a unit of each level
                directory.write_summary(summary)
            trainer.strategy.barrier()  # what follows in any process finds the run finished
            if tracker is not None:
                samples = None
                if write_samples is not None and cfg.logger.samples and trainer.world_size == 1:
                    model.to(trainer.strategy.root_device)  # Lightning has put it back on the CPU
                    samples = partial(write_samples, model, pretrained.tokenizer, cfg, directory, corpus.documents)
                show_end(tracker, directory, getattr(cfg.logger, "artifact", False), samples)
        first = corpus.documents[corpus.documents["task"] == corpus.task_names[0]]
        prompt = Tokens.of(cfg.data, *pretrained).example(first.head(1))
        return Trained(summary, tracker.where if tracker is not None else "", prompt)


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
        "`broadcast_buffers` is deprecated",  # its successor would still send them round once
        "It is recommended to use .*sync_dist=True",  # the metrics have been summed over processes already
        "FSDP2-wrapped module .* returned a view tensor",  # nothing changes a block's output in place
    ):
        warnings.filterwarnings("ignore", message)


@contextmanager
def keep_random_state() -> Iterator[None]:
    """Put back, at the end, the state of what draws numbers in this process on the CPU: torch, NumPy, Python."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def collect_results(module: TrainingModule, corpus: Corpus) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Collect per_task.csv's rows and the summary's perplexities from the metrics, after testing."""
    val, test, base = (module.metric(k).compute() for k in ("val", "test", "base_test"))
    per_task = corpus.per_task().rename_axis("task").reset_index()
    # More than the documents' own tokens, where padding is scored too.
    per_task["test_tokens"] = test["task_tokens"].long().tolist()
    for split, result in (("val", val), ("test", test)):
        per_task[f"{split}_nll"] = result["task_nll"].tolist()
        per_task[f"{split}_perplexity"] = result["task_perplexity"].tolist()
    per_task["distance"] = module.model.adapters.distances().tolist()
    for name in ("nll", "perplexity"):
        per_task[f"base_test_{name}"] = base[f"task_{name}"].tolist()
    parts = {"effect": None} | ({} if module.model.adapters.levels is None else {"own_effect": 0})
    for name, part in parts.items():
        effects = module.effect(part)
        per_task[name], per_task[f"{name}_error"] = (effects[k].tolist() for k in ("difference", "error"))
    summary = {
        "val_perplexity": val["perplexity"].item(),
        "val_perplexity_macro": val["perplexity_macro"].item(),
        "test_perplexity": test["perplexity"].item(),
        "test_perplexity_macro": test["perplexity_macro"].item(),
        "base_test_perplexity": base["perplexity"].item(),
    }
    if "val_by_batch" in module.metrics:  # the published code's figure
        by_batch = module.metric("val_by_batch").compute()
        per_task["val_perplexity_by_batch"] = by_batch["task_perplexity"].tolist()
        summary["val_perplexity_by_batch"] = by_batch["perplexity"].item()
    return per_task, summary


def _warn_of_later_data(cfg: Config, directory: RunDirectory) -> None:
    """Warn where the table was written after the run had finished: a sweep that is repeated keeps such a run."""
    path = getattr(cfg.data, "path", None)
    file = None if path is None else Path(path).expanduser()
    if file is not None and file.is_file() and file.stat().st_mtime > (directory.path / SUMMARY).stat().st_mtime:
        log.warning(
            "%s was written after this run had finished, and may differ; to train on it give another folder", file
        )


def describe_units(module: TrainingModule) -> pd.DataFrame:
    """Tabulate the units of all levels.

    Returns:
        level, unit, n_train (documents), distance ‖Δ‖₂ in parameter units; test_tokens of its documents, effect, how many
        nats a token higher their NLL is without Δ, and effect_error, its standard error over documents.
    """
    adapters = module.model.adapters
    levels = adapters.levels
    assert levels is not None
    assert adapters.stored is not None
    deviations = adapters.stored.detach()[len(adapters.task_names) :]
    table = pd.DataFrame(levels.pairs, columns=["level", "unit"])
    found = [module.effect(1 + level) for level in range(len(levels.units))]
    effects = {key: torch.cat([one[key] for one in found]).tolist() for key in ("tokens", "difference", "error")}
    return table.assign(
        n_train=levels.documents,
        distance=deviations.double().norm(dim=1).tolist(),
        test_tokens=list(map(int, effects["tokens"])),
        effect=effects["difference"],
        effect_error=effects["error"],
    )


def describe_run(cfg: Config, module: TrainingModule, corpus: Corpus) -> dict[str, Any]:
    """Describe what is run: the part of the summary that is known before training."""
    model, levels = module.model, module.model.adapters.levels
    above: dict[str, Any] = {}
    if levels is not None:
        above["levels"] = dict(zip(levels.columns, levels.taus, strict=True))
    if cfg.model.source == "hub" and (folder := Path(cfg.model.path).expanduser()).is_dir():
        above["model_folder"] = str(folder.resolve())  # model.path may be seen from here
    return above | {
        "tau": model.tau,
        "seed": cfg.seed,
        "model": str(cfg.model.name),
        "dtype": str(model.backbone.dtype).removeprefix("torch."),
        "attention": model.backbone.model.config._attn_implementation,
        "data": str(cfg.data.name),
        "n_tasks": len(corpus.task_names),
        "parameterization": model.adapters.name,
        "penalty": model.penalty,
        "likelihood": model.likelihood,
        "lr": module.lr,
        "n_documents": int(model.task_documents.sum()),
        "n_tokens": model.n_tokens,
        "params_per_task": model.n_parameters,
        "dropped": corpus.dropped,
        **corpus.truncation.summary(),
        "leakage": corpus.leakage(),
        "data_sha256": corpus.sha256,
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }
