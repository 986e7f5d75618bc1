"""One run: data → model → fit → test → the run directory's files."""

import logging
import sys
import time
import warnings
from typing import Any

import hydra
import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from bora.data.module import Corpus, TaskDataModule, build_corpus
from bora.errors import InputError
from bora.model.backbone import Pretrained
from bora.model.likelihood import n_scored
from bora.model.module import HierarchicalLoRA
from bora.results.loggers import build_loggers, wandb_run
from bora.results.run_directory import RunDirectory, versions
from bora.results.tables import print_tasks

log = logging.getLogger(__name__)


def train(cfg: DictConfig, directory: RunDirectory, group: str, name: str) -> dict[str, Any]:
    """Train, test and write a run; its summary.

    Args:
        cfg: a checked config (bora.config.check).
        directory: where the run's files go.
        group, name: of the W&B run.

    Raises:
        InputError: for whatever in the input cannot be used, before training starts.
    """
    finished = directory.claim(cfg)
    if finished is not None:
        log.info("finished already; nothing is done again")
        tell(directory)
        return finished
    started = time.perf_counter()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    quiet()
    pretrained: Pretrained = hydra.utils.instantiate(cfg.model.loader)
    corpus = load_corpus(cfg, pretrained)
    log.info("%s", corpus.describe())
    data = TaskDataModule(
        corpus,
        pad_id=pretrained.tokenizer.pad_token_id or 0,
        batch_size=cfg.data.batch_size,
        eval_batch_size=cfg.data.eval_batch_size,
        seed=cfg.seed,
    )
    model = build_model(cfg, pretrained, corpus.task_names, data)
    if model.parameterization != cfg.prior.parameterization:
        log.info(
            "at tau=%g the %s form is trained (not %s)",
            cfg.tau, model.parameterization, cfg.prior.parameterization,
        )  # fmt: skip
    directory.write_documents(corpus.documents)
    about = identity(cfg, model, corpus)
    loggers = build_loggers(cfg, directory.path, group, name, {"run": about})
    with wandb_run(loggers):
        trainer, speed, best = build_trainer(cfg, directory, loggers, len(data.train_dataloader()))
        trainer.fit(model, data)
        if best.best_model_score is None or not best.best_model_score.isfinite():
            raise InputError(
                f"training diverged: no epoch had a finite validation NLL (tau={cfg.tau:g}, learning rate "
                f"{model.lr:g}, {model.parameterization}); give a lower optim.lr"
            )
        # The best epoch on validation; only now is test read, and once.
        trainer.validate(model, data, ckpt_path=best.best_model_path, verbose=False, weights_only=True)
        trainer.test(model, data, verbose=False)
        per_task, summary = results(model, corpus)
        steps = trainer.fit_loop.epoch_loop.global_step
        summary |= {
            "best_epoch": speed.epoch_of(best.best_model_score.item()),
            "epochs": len(speed.val_nll),
            "steps": steps,
            "train_tokens_per_second": round(speed.tokens_per_second, 1),
            "seconds": round(time.perf_counter() - started, 1),
        }
        summary = about | summary
        if trainer.is_global_zero:
            directory.write_per_task(per_task)
            directory.write_summary(summary)
    if trainer.is_global_zero:
        tell(directory)
    return summary


def tell(directory: RunDirectory) -> None:
    """Print a finished run's table, from its files, and where they are."""
    print_tasks(directory.per_task(), directory.finished())
    print(f"run directory: {directory.path.resolve()}")


def quiet() -> None:
    """Silence what the libraries say about things that are meant to be as they are."""
    if rank_zero_only.rank != 0:  # one process speaks for all
        logging.getLogger("bora").setLevel(logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "Experiment logs directory .* exists and is not empty",  # Hydra's own files are there
        "Found .* module.* in eval mode at the start of training",  # the frozen backbone
        ".*isinstance.treespec, LeafSpec.* is deprecated",
        "The '.*_dataloader' does not have many workers",  # tokens are in memory already
        "The number of training batches .* is smaller than the logging interval",
    ):
        warnings.filterwarnings("ignore", message)


def load_corpus(cfg: DictConfig, pretrained: Pretrained) -> Corpus:
    """The config's documents, read, selected, split and encoded."""
    d = cfg.data
    positions = getattr(pretrained.model.config, "max_position_embeddings", None)
    if positions is not None and d.max_tokens > positions:
        raise InputError(
            f"data.max_tokens={d.max_tokens}: the model has {positions} positions; choose at most that"
        )
    return build_corpus(
        hydra.utils.instantiate(d.reader),
        pretrained.tokenizer,
        selection={
            "selection": d.selection,
            "n_tasks": d.n_tasks,
            "min_documents": d.min_documents,
            "max_documents": d.max_documents,
            "documents_per_task": d.documents_per_task,
            "min_characters": d.min_characters,
            "drop_duplicates": d.drop_duplicates,
            "seed": d.split.seed,
        },
        split_options=OmegaConf.to_container(d.split),
        encoding={
            "max_tokens": d.max_tokens,
            "prompt": d.prompt,
            "template": d.template,
            "append_eos": d.append_eos,
        },
    )


def build_model(
    cfg: DictConfig, pretrained: Pretrained, task_names: list[str], data: TaskDataModule
) -> HierarchicalLoRA:
    """The LightningModule that the config describes."""
    return HierarchicalLoRA(
        pretrained.model,
        task_names,
        n_documents=data.n_documents,
        n_tokens=data.n_tokens,
        tau=cfg.tau,
        **OmegaConf.to_container(cfg.lora),
        **OmegaConf.to_container(cfg.prior),
        lr=cfg.optim.lr,
        betas=tuple(cfg.optim.betas),
        eps=cfg.optim.eps,
    )


class TrainingClock(Callback):
    """Counts scored training tokens and the seconds they took; says how each epoch went."""

    def __init__(self) -> None:
        self.tokens, self.seconds, self._since = 0, 0.0, 0.0
        self.val_nll: list[float] = []

    @property
    def tokens_per_second(self) -> float:
        """Scored training tokens a second, validation's time left out."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def epoch_of(self, nll: float) -> int:
        """The first epoch, counted from 1, with this validation NLL."""
        return self.val_nll.index(nll) + 1

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        # Counting the tokens waits for the device, so it comes before the clock is read.
        self.tokens += int(n_scored(batch["labels"]).sum()) * trainer.world_size
        self.seconds += time.perf_counter() - self._since
        module.log("tokens/s", self.tokens_per_second, prog_bar=True, rank_zero_only=True)

    def on_validation_end(self, trainer, module) -> None:
        if trainer.state.fn != "fit":
            return
        metrics = trainer.callback_metrics
        self.val_nll.append(metrics["val/nll"].item())
        if trainer.is_global_zero:
            log.info(
                "epoch %d: validation perplexity %.3f, training loss %.4f nats/token, %.0f tokens/s",
                len(self.val_nll), metrics["val/perplexity"], metrics["train/loss"], self.tokens_per_second,
            )  # fmt: skip


def build_trainer(
    cfg: DictConfig, directory: RunDirectory, loggers: list, batches_an_epoch: int
) -> tuple[L.Trainer, TrainingClock, ModelCheckpoint]:
    """The Lightning Trainer with its checkpoints, early stopping and progress bar."""
    clock = TrainingClock()
    best = ModelCheckpoint(
        directory.checkpoints, filename="best", monitor="val/nll", enable_version_counter=False
    )
    # save_last would copy the best one: it is written only in an epoch that is a new best.
    last = ModelCheckpoint(directory.checkpoints, filename="last", enable_version_counter=False)
    stop = EarlyStopping("val/nll", patience=cfg.optim.patience)
    callbacks: list[Callback] = [clock, stop, best, last]
    options = OmegaConf.to_container(cfg.trainer)
    if cfg.trainer.max_steps > 0:
        # An epoch ends where training does, so that a run of a few steps is validated too.
        last_batch = cfg.trainer.max_steps * cfg.trainer.accumulate_grad_batches
        options["limit_train_batches"] = min(last_batch, batches_an_epoch)
    if "strategy" in cfg.trainer:
        options["strategy"] = hydra.utils.instantiate(cfg.trainer.strategy)
    if sys.stdout.isatty():  # where tqdm writes
        callbacks.append(TQDMProgressBar())
    else:  # in a log file a bar is noise; an epoch's line stands there instead
        options["enable_progress_bar"] = False
    try:
        trainer = L.Trainer(
            **options,
            callbacks=callbacks,
            logger=loggers,
            use_distributed_sampler=False,  # bora.data.batches.Batches shares the documents out
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise InputError(f"trainer: Lightning refuses these settings: {error}") from error
    return trainer, clock, best


def results(model: HierarchicalLoRA, corpus: Corpus) -> tuple[pd.DataFrame, dict[str, Any]]:
    """per_task.csv's rows and the summary's perplexities, from the metrics after testing."""
    val, test, base = (model.metrics[k].compute() for k in ("val", "test", "base_test"))
    per_task = corpus.per_task().rename_axis("task").reset_index()
    for split, result in (("val", val), ("test", test)):
        per_task[f"{split}_nll"] = result["task_nll"].tolist()
        per_task[f"{split}_perplexity"] = result["task_perplexity"].tolist()
    per_task["distance"] = model.adapters.distances().tolist()
    return per_task, {
        "val_perplexity": val["perplexity"].item(),
        "val_perplexity_macro": val["perplexity_macro"].item(),
        "test_perplexity": test["perplexity"].item(),
        "test_perplexity_macro": test["perplexity_macro"].item(),
        "base_test_perplexity": base["perplexity"].item(),
    }


def identity(cfg: DictConfig, model: HierarchicalLoRA, corpus: Corpus) -> dict[str, Any]:
    """What was run: the part of the summary that is known before training."""
    return {
        "tau": model.tau,
        "seed": cfg.seed,
        "model": cfg.model.name,
        "data": cfg.data.name,
        "n_tasks": len(corpus.task_names),
        "parameterization": model.parameterization,
        "penalty": model.penalty,
        "lr": model.lr,
        "n_documents": model.n_documents,
        "n_tokens": model.n_tokens,
        "params_per_task": model.adapters.params_per_task,
        "dropped": corpus.dropped.rows,
        "truncated_documents": corpus.truncation.documents,
        "truncated_tokens": corpus.truncation.tokens,
        "data_sha256": corpus.sha256,
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }
