"""Build what a config describes: the corpus, the batches, the model and the training module."""

import logging
import os
import shutil
from pathlib import Path

import pandas as pd

from bora.bayes.adamw import learning_rate
from bora.bayes.levels import Levels, build_levels, describe_confounded
from bora.bayes.model import HierarchicalLoRA
from bora.bayes.shrinkage import FREE_TAU
from bora.config.schema import Config
from bora.data.corpus import Corpus, build_corpus
from bora.data.module import TaskDataModule
from bora.data.prompts import whole_texts
from bora.data.read import read_documents
from bora.data.tokens import Tokens
from bora.errors import UserError
from bora.lib.machine import device_type, require_gpus
from bora.model.backbone import Backbone
from bora.model.pretrained import Pretrained, max_positions
from bora.runs.checkpoints import load_checkpoint
from bora.runs.directory import RunDirectory
from bora.runs.peft import has_adapters, log_start, start_from_adapters
from bora.runs.values import hash_text
from bora.train.module import TrainingModule

MIN_UNITS = 3  # fewest units from which to learn a level's τ

log = logging.getLogger(__name__)


def load_corpus(cfg: Config, pretrained: Pretrained, table: pd.DataFrame | None = None) -> Corpus:
    """Read the documents, unless the table is given, then select, split and encode them.

    Raises:
        UserError: the documents cannot be read, or the model has too few positions, or no tokens, for them.
    """
    data = cfg.data
    positions = max_positions(pretrained.model.config)
    if positions is not None and data.max_tokens > positions:
        raise UserError(
            f"data.max_tokens={data.max_tokens}: the model has only {positions} positions; give at most that"
        )
    tokens = Tokens.of(data, *pretrained)
    return build_corpus(read_documents(data) if table is None else table, tokens, data)


def find_levels(cfg: Config, corpus: Corpus) -> tuple[Levels, list[list[int]]] | tuple[None, None]:
    """Sort the corpus's documents into the units of each level, see `build_levels`; warn if they are confounded.

    Raises:
        UserError: `build_levels` refuses a level, a level has too few units to learn its τ, or a unit has a task's name.
    """
    if not corpus.levels:
        return None, None
    documents, place = corpus.documents, {name: d for d, name in enumerate(corpus.task_names)}
    training = (documents["split"] == "train") & (documents["piece"] == 0)
    tasks = documents["task"].map(place).tolist()
    try:
        taus = [FREE_TAU] * len(corpus.levels) if cfg.tau == "learn" else cfg.level_taus
        levels, units = build_levels(corpus.levels, tasks, training.tolist(), taus)
    except ValueError as error:
        raise UserError(f"data.levels: {error}") from error
    for column, own in zip(levels.columns, levels.units, strict=True):
        if cfg.tau == "learn" and len(own) < MIN_UNITS:
            raise UserError(
                f"data.levels={column}: {len(own)} units are too few to learn its τ; give all τ, the task's first: "
                "tau=[100,1000]"
            )
    if twice := set(corpus.task_names) & set(levels.names):
        raise UserError(f"data.levels: {min(twice)} is the name of a task and of a unit; rename the task")
    for line in describe_confounded(levels, tasks, units):
        log.warning("data.levels: %s", line)
    return levels, units


def require_hardware(cfg: Config) -> None:
    """Check that this machine has what the config needs.

    Raises:
        UserError: it lacks GPUs or a compiler.
    """
    require_gpus(cfg.trainer.accelerator, cfg.trainer.devices)
    if cfg.model.attention == "flex_attention" and device_type(cfg.trainer.accelerator) != "cuda":
        raise UserError("model.attention=flex_attention trains on a GPU only; give auto, sdpa or eager")
    compilers = os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl"
    if cfg.model.compile and not any(map(shutil.which, compilers)):
        raise UserError("model.compile=true needs a C++ compiler, but there is no c++ or g++; install one")


def build_data(cfg: Config, pretrained: Pretrained, corpus: Corpus) -> TaskDataModule:
    """Batch the corpus in the order and with the padding that the config asks for."""
    levels, units = find_levels(cfg, corpus)
    return TaskDataModule(
        corpus,
        batch_size=cfg.data.batch_size,
        eval_batch_size=cfg.data.eval_batch_size,
        seed=cfg.seed,
        scored_padding=pretrained.tokenizer.eos_token_id if cfg.data.score_padding else None,
        order=cfg.data.order,
        levels=levels,
        units=units,
    )


def build_model(cfg: Config, pretrained: Pretrained, task_names: list[str], data: TaskDataModule) -> HierarchicalLoRA:
    """Build the model that the config describes, at its initial parameters."""
    lora = cfg.lora
    how = {
        "compile": cfg.model.compile,
        "cuda_graphs": cfg.records_steps,
        "gradient_checkpointing": cfg.model.gradient_checkpointing,
    }
    model = HierarchicalLoRA(
        Backbone(pretrained.model, lora.target_modules, lora.rank, lora.effective_alpha, **how),
        task_names,
        data.task_documents,
        data.n_tokens,
        cfg.task_tau,
        **cfg.prior.model_dump(),
        likelihood=cfg.likelihood,
        levels=data.levels,
        init_std=lora.init_std,
        dropout=lora.dropout,
    )
    if cfg.init_from is not None:
        source = find_start(cfg.init_from)
        try:
            if source.is_finished:
                checkpoint = load_checkpoint(source.best)
                model.start_from(checkpoint)
                log_start(task_names, checkpoint["hyper_parameters"]["task_names"])
            else:
                start_from_adapters(model, source.path)
        except UserError as error:
            raise UserError(f"init_from: {error}") from error
        if cfg.tau == "learn":
            log.warning("init_from: tau=learn takes only Θ: all tasks start at Θ")
    return model


def build_module(cfg: Config, model: HierarchicalLoRA) -> TrainingModule:
    """Wrap the model for training, as the config describes."""
    optim = cfg.optim
    lr = learning_rate(model.tau, cfg.prior.parameterization) if optim.lr is None else optim.lr
    betas = (optim.betas[0], optim.betas[1])
    how = optim.schedule, optim.warmup_steps, optim.nonfinite, cfg.seed, optim.average
    return TrainingModule(model, lr, betas, optim.eps, *how)


def find_seen(cfg: Config, corpus: Corpus) -> set[str]:
    """Return the hashes of the texts that init_from's run was trained on or chosen by; warn if this run tests on any."""
    source = None if cfg.init_from is None else find_start(cfg.init_from)
    seen = (source.trained_on() if source is not None and source.is_finished else None) or set()
    test = corpus.documents.query("split == 'test' and piece == 0")
    if n := sum(hash_text(text) in seen for text in whole_texts(test)):
        log.warning(
            "init_from: that run was trained on, or chosen by, %d of this run's %d test documents, so their perplexity "
            "is too low; split by date (data.split.method=date), or leave its documents out",
            n,
            len(test),
        )
    return seen


def find_start(init_from: str) -> RunDirectory:
    """Find the folder of a finished run, or of PEFT adapters, that a run starts from.

    Raises:
        UserError: the folder holds neither.
    """
    source = RunDirectory(Path(init_from).expanduser())
    if not source.is_finished and not has_adapters(source.path):
        raise UserError(f"init_from={init_from}: the folder holds neither a finished run nor a PEFT adapter")
    return source
