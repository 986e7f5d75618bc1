"""Check what types cannot express: rules between settings, and that no value is a secret."""

import math
from collections.abc import Iterator
from typing import Any

from bora.config.schema import Config, Trainer, WandbLogger, flatten

# Arguments of Lightning's Trainer that bora itself sets → why, or what to give instead.
_REASONS = {
    "limit_val_batches limit_test_batches": "validation and test read all their documents; for fewer, give "
    "data.documents_per_task",
    "fast_dev_run overfit_batches": "it would leave out validation, which chooses the epoch; for a short run give "
    "trainer.max_steps",
    "gradient_clip_val": "give optim.clip",
    "precision": "adapters are trained in float32; the backbone's precision is model.dtype",
    "callbacks logger plugins use_distributed_sampler num_sanity_val_steps enable_model_summary": "bora sets it itself",
}
RESERVED = {key: why for keys, why in _REASONS.items() for key in keys.split()}


def rules(config: Config) -> Iterator[str]:
    """Yield a line for each broken rule between settings."""
    trainer, split = config.trainer, config.data.split
    if trainer.max_steps == 0:
        yield "trainer.max_steps=0 trains nothing; give 1 or more, or -1 for no limit"
    if split.validation + split.test >= 1:
        yield (
            f"data.split.validation={split.validation} and data.split.test={split.test} leave nothing to train on; "
            "their sum must be below 1"
        )
    if "{text}" not in config.data.template:
        yield f"data.template={config.data.template!r} must contain {{text}}"
    messages = getattr(config.data, "messages", None)
    if messages is not None and (config.data.prompt is not None or config.data.chat_template):
        given = "data.prompt" if config.data.prompt is not None else "data.chat_template"
        yield f"data.messages={messages} holds whole chats, prompts included; remove {given}"
    if config.data.chat_template and config.data.prompt is None:
        yield "data.chat_template=true writes a prompt and its answer as a chat; give data.prompt"
    if 2 * config.data.overlap > config.data.max_tokens:
        yield (
            f"data.overlap={config.data.overlap} is more than half of data.max_tokens={config.data.max_tokens}, so "
            "pieces would mostly repeat each other; give at most half"
        )
    if isinstance(config.tau, list) and len(config.tau) != 1 + len(config.data.levels):
        yield (
            f"tau={config.tau} has {len(config.tau)} values, but the task and data.levels={config.data.levels} need "
            f"{1 + len(config.data.levels)}"
        )
    if config.data.levels:
        yield from _rules_of_levels(config)
    if config.tau == "learn":
        yield from _rules_of_learning(config)
    parts = {f"trainer.{key}": getattr(trainer, key) for key in ("devices", "num_nodes", "accumulate_grad_batches")}
    if config.likelihood == "task_mean" and set(parts.values()) != {1}:
        needed = " ".join(f"{key}=1" for key in parts)
        yield f"likelihood=task_mean averages over a whole batch, so it needs {needed}"
    accumulate, limit = trainer.accumulate_grad_batches, trainer.limit_train_batches
    if limit is not None and limit % accumulate:
        yield (
            f"trainer.limit_train_batches={limit} leaves a step of fewer than "
            f"trainer.accumulate_grad_batches={accumulate} batches, whose gradient would be too small; give a multiple"
        )
    if trainer.num_nodes > 1 and trainer.strategy == "auto":
        yield f"trainer.num_nodes={trainer.num_nodes} needs several processes: give trainer=ddp or trainer=fsdp"
    if isinstance(config.logger, WandbLogger) and "/" in config.logger.project:
        entity, _, project = config.logger.project.partition("/")
        yield (
            f"logger.project={config.logger.project}: a W&B project's name has no slash; give "
            f"logger.entity={entity} logger.project={project}"
        )
    for key in trainer.extra:
        if key in RESERVED:
            yield f"trainer.extra.{key}: {RESERVED[key]}"
        elif key in Trainer.model_fields:
            yield f"trainer.extra.{key}: give trainer.{key}"
    every = trainer.extra.get("check_val_every_n_epoch")
    if isinstance(every, int) and not 1 <= every <= trainer.max_epochs:
        yield (
            f"trainer.extra.check_val_every_n_epoch={every}: no epoch would be validated, and validation chooses one; "
            f"give 1 or more, at most trainer.max_epochs={trainer.max_epochs}"
        )
    if trainer.strategy == "fsdp" and config.model.quantization is not None:
        yield "trainer=fsdp cannot shard a quantised backbone; set model.quantization=null"
    if trainer.strategy == "fsdp" and config.model.compile:
        yield "trainer=fsdp runs the backbone uncompiled; set model.compile=false"
    if config.model.gradient_checkpointing and config.model.compile:
        yield "model.gradient_checkpointing=true runs the backbone uncompiled; set model.compile=false"


DEVIATIONS = {"prior.parameterization": "noncentered", "prior.penalty": "gaussian"}  # what levels and tau=learn support


def _other_than(needed: dict[str, Any], config: Config, what: str, instead: str) -> Iterator[str]:
    """Yield a line for each setting whose value `what` does not support."""
    given = flatten(config.model_dump())
    for key, only in needed.items():
        if given[key] != only:
            yield f"{key}={given[key]}: {what} supported only with {key}={only}; give that, or {instead}"


def _rules_of_levels(config: Config) -> Iterator[str]:
    """Yield a line for each setting that levels do not support."""
    columns = config.data.levels
    for column in columns:
        if columns.count(column) > 1 or column in (getattr(config.data, "task", None), "task"):
            yield f"data.levels={columns}: {column} is named twice, or is the tasks' column; leave it out"
            break
        if column in (getattr(config.data, "text", None), getattr(config.data, "messages", None)):
            yield f"data.levels={columns}: {column} is the document itself; leave it out"
    if config.tau != "learn" and not all(0 < float(tau) < math.inf for tau in (config.task_tau, *config.level_taus)):
        yield f"tau={config.tau} with data.levels: each must be above 0 and finite; to drop a level, remove its column"
    yield from _other_than(DEVIATIONS, config, "data.levels are", "data.levels=[]")


def _rules_of_learning(config: Config) -> Iterator[str]:
    """Yield a line for each setting that tau=learn does not support."""
    needed = DEVIATIONS | {"prior.estimator": "by_document", "likelihood": "sum", "lora.init_std": 0}
    yield from _other_than(needed, config, "tau=learn is", "a number for tau")
    if config.trainer.max_epochs == 1 and config.trainer.val_check_interval is None:
        yield (
            "trainer.max_epochs=1: tau=learn needs two validations, one for Θ and one for the tasks' deviations; "
            "give 2 epochs or more, or trainer.val_check_interval"
        )


def find_secret(key: str, value: Any) -> str | None:
    """Describe, without repeating it, a value that holds a secret or would fetch one; return None for any other.

    A run's files repeat its config, so a config is no place for secrets.
    """
    if not isinstance(value, str) or key in ("data.prompt", "data.template"):
        return None
    authority, _, rest = value.partition("://")[2].partition("/")
    port = authority.rpartition(":")[2]
    # A password may contain a slash that should have been written %2F; then it ends in `rest`.
    if "@" in authority or (":" in authority and not port.isdigit() and "@" in rest):
        what = "a URL with a user or password in it"
    elif "${oc.env:" in value:
        what = "read from the environment"
    else:
        return None
    return (
        f"{key}: {what}. A run's files repeat its config, so give secrets only by environment variables: "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, WANDB_API_KEY, HF_TOKEN"
    )
