"""Where the Hydra configs are, how a sweep's jobs are named, and what a config must satisfy."""

import math
import os
import re
import shutil
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from bora.bayes.objective import ESTIMATORS, LIKELIHOODS
from bora.bayes.prior import PENALTIES
from bora.errors import UserError
from bora.lib.redaction import MARK

ABSENT = object()
GROUPS = ("data", "model", "lora", "prior", "optim", "trainer", "logger")
# Groups whose every setting has one meaning here; one too many would have none.
CLOSED = {
    "data.split": "data/_shared.yaml",
    "lora": "lora/default.yaml",
    "prior": "prior/default.yaml",
    "optim": "optim/adamw.yaml",
}
MOST = 2**31 - 1  # of what is counted: documents in a batch, epochs, a LoRA's rank
SEEDS = 2**32 - 1  # the largest seed


def config_folder() -> Path:
    """conf/: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, its keys joined by dots; lists are values."""
    if isinstance(node, dict):
        return {k: v for key, child in node.items() for k, v in flat(child, f"{prefix}{key}.").items()}
    return {prefix[:-1]: node}


def register_resolvers() -> None:
    """Make `${bora.job_name:}` and `${bora.short:…}` known to OmegaConf."""
    OmegaConf.register_new_resolver("bora.job_name", job_name, replace=True)
    OmegaConf.register_new_resolver("bora.short", format_value, replace=True)


def plain(group: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """A group of the config, or all of it, as plain values; interpolations are resolved, or stand as they are."""
    return cast(dict[str, Any], OmegaConf.to_container(group, resolve=resolve))


def format_value(value: Any) -> str:
    """A value as it stands in a folder's name: 100.0 as 100, 1e5 as 100000, a path by its last part."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:.12g}"
    text = str(value)
    return re.sub(r"[^\w.+\-@]+", "-", Path(text).name if "/" in text else text).strip("-")


def job_name(*, _root_: DictConfig) -> str:
    """A sweep job's folder: tau and seed, then whatever else the sweep varies, by value.

    What varies is read from multirun.yaml, which Hydra writes into the sweep's folder before the
    first job starts: a job alone does not know which of its overrides the others share.
    """
    swept = _swept_keys(Path(_root_.hydra.sweep.dir) / "multirun.yaml")
    job = {o.split("=", 1)[0].lstrip("+~"): o.split("=", 1)[-1] for o in _root_.hydra.overrides.task}
    parts = {"tau": _root_.tau, "seed": _root_.seed}
    for key in sorted(swept - set(parts)):
        # A group (model=…) is named by the option chosen, a value by the value.
        parts[key] = job.get(key, "")
    return ",".join(f"{key}={format_value(value)}" for key, value in parts.items())


def _swept_keys(multirun: Path) -> set[str]:
    if not multirun.is_file():
        return set()
    sweep = OmegaConf.load(multirun).hydra
    task = cast(
        list[str], OmegaConf.to_container(sweep.overrides.task)
    )  # not resolved: what comes in may have quotes
    keys = {
        override.get_key_element().lstrip("+~")
        for override in OverridesParser.create().parse_overrides(task)
        if override.is_sweep_override()
    }
    return keys | set(OmegaConf.select(sweep, "sweeper.params") or {})


def check(cfg: DictConfig) -> None:
    """Hold the values to their ranges before any work is done.

    Raises:
        UserError: the first value that is out of range, with the range.
    """
    for key in (*GROUPS, "data.reader", "model.loader"):
        if not isinstance(OmegaConf.select(cfg, key), DictConfig):
            raise UserError(
                f"{key} is a group of settings, see conf/{key.split('.')[0]}; it cannot be a value"
            )
    for key, file in CLOSED.items():
        known = OmegaConf.load(config_folder() / file)
        known = known.split if key == "data.split" else known
        for name in OmegaConf.select(cfg, key):
            if name not in known:
                raise UserError(
                    f"{key}.{name}: there is no such setting; {key} has {', '.join(map(str, known))}"
                )
    # Not by OmegaConf.missing_keys, which stops at what is made of a missing value.
    missing = sorted(k for k, v in flat(OmegaConf.to_container(cfg)).items() if v == "???")
    if missing:
        raise UserError(f"{missing[0]} is needed and has no default; give {missing[0]}=…")
    for key, value in flat(OmegaConf.to_container(cfg)).items():
        if isinstance(value, str) and MARK in value:  # a config.yaml is run again
            raise UserError(
                f"{key}: a secret stood there, which config.yaml does not keep; give {key}=… again"
            )

    def number(
        key: str,
        low: float,
        high: float = math.inf,
        *,
        whole: bool = False,
        open_low: bool = False,
        null: bool = False,
    ) -> None:
        value = OmegaConf.select(cfg, key, throw_on_missing=True)
        if value is None and null:
            return
        kind = "a whole number" if whole else "a number"
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not fits or not (low < value if open_low else low <= value) or not value <= high:
            bound = f"{'above' if open_low else 'from'} {low:g}" + (
                f" to {high:g}" if math.isfinite(high) else ""
            )
            raise UserError(f"{key}={value} must be {kind} {bound}{', or null' if null else ''}")

    def choice(key: str, options: tuple[str, ...]) -> None:
        value = OmegaConf.select(cfg, key)
        if value not in options:
            raise UserError(f"{key}={value} must be one of {', '.join(options)}")

    def given(key: str) -> Any:
        """The value, or ABSENT where this corpus or model has no such key."""
        group, _, name = key.rpartition(".")
        return plain(OmegaConf.select(cfg, group) if group else cfg).get(name, ABSENT)

    def text(key: str, *, null: bool = False) -> None:
        value = given(key)
        if value is ABSENT or (value is None and null) or isinstance(value, str):
            return
        raise UserError(f"{key}={value} must be text{', or null' if null else ''}; put it in quotes")

    def strings(key: str, *, one: bool = False, null: bool = False) -> None:
        value = given(key)
        if value is ABSENT or (value is None and null) or (isinstance(value, str) and one):
            return
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            forms = [
                "a list of names, [a,b], with at least one",
                *["a regular expression"] * one,
                *["null"] * null,
            ]
            raise UserError(f"{key}={value} must be {', or '.join(forms)}")

    number("tau", 0)
    number("seed", 0, SEEDS, whole=True)
    choice("resume", ("auto", "never"))
    number("checkpoint_minutes", 0)
    number("lora.rank", 1, MOST, whole=True)
    number("lora.alpha", 0, 1e9, open_low=True)
    number("lora.init_std", 0, 1e9)
    choice("prior.parameterization", ("centered", "noncentered"))
    choice("prior.penalty", PENALTIES)
    choice("prior.estimator", ESTIMATORS)
    choice("likelihood", LIKELIHOODS)
    choice("data.order", ("bucketed", "shuffled", "fixed"))
    if cfg.likelihood == "task_mean" and cfg.trainer.devices != 1:
        raise UserError("likelihood=task_mean averages over a whole batch, so it needs trainer.devices=1")
    number("optim.lr", 0, 1e9, open_low=True, null=True)
    number("optim.eps", 0, 1, open_low=True)
    number("optim.patience", 1, whole=True)
    choice("optim.nonfinite", ("stop", "skip"))
    number("data.n_tasks", 1, whole=True, null=True)
    number("data.min_documents", 0, whole=True, null=True)
    number("data.max_documents", 1, whole=True, null=True)
    if isinstance(cfg.data.documents_per_task, ListConfig):
        for place in range(len(cfg.data.documents_per_task)):
            number(f"data.documents_per_task[{place}]", 3, whole=True)
    else:
        number("data.documents_per_task", 3, whole=True, null=True)
    number("data.min_characters", 0, whole=True)
    number("data.max_tokens", 2, whole=True)
    number("data.batch_size", 1, MOST, whole=True)
    number("data.eval_batch_size", 1, MOST, whole=True)
    number("data.split.seed", 0, whole=True)
    number("data.split.validation", 0, 1, open_low=True)
    number("data.split.test", 0, 1, open_low=True)
    number("logger.task_lines", 0, whole=True)
    number("trainer.max_epochs", 1, whole=True)
    number("trainer.accumulate_grad_batches", 1, MOST, whole=True)
    number("trainer.max_steps", -1, whole=True)
    number("trainer.log_every_n_steps", 1, whole=True)
    number("trainer.gradient_clip_val", 0, null=True)
    number("trainer.check_val_every_n_epoch", 1, whole=True, null=True)
    if cfg.trainer.max_steps == 0:
        raise UserError("trainer.max_steps=0 trains nothing; give 1 or more, or -1 for no bound")
    every = given("trainer.check_val_every_n_epoch")
    if isinstance(every, int) and every > cfg.trainer.max_epochs:
        raise UserError(
            f"trainer.check_val_every_n_epoch={every}: no epoch would be validated, and validation chooses one; give at "
            f"most trainer.max_epochs={cfg.trainer.max_epochs}"
        )
    if not _is_all(given("trainer.limit_train_batches")):
        number("trainer.limit_train_batches", 1, whole=True)
    for key in ("trainer.limit_val_batches", "trainer.limit_test_batches"):
        if not _is_all(given(key)):
            raise UserError(
                f"{key}={given(key)}: validation and test are of all their documents; for fewer, give "
                "data.documents_per_task"
            )
    for key in ("trainer.fast_dev_run", "trainer.overfit_batches"):
        if given(key) not in (ABSENT, None, 0):
            raise UserError(
                f"{key}={given(key)} would leave out validation, which chooses the epoch; for a short run give "
                "trainer.max_steps and data.documents_per_task"
            )
    interval = given("trainer.val_check_interval")
    if isinstance(interval, (int, float)) and not interval > 0:
        raise UserError(
            f"trainer.val_check_interval={interval} must be a number of batches, or a share of an epoch above 0"
        )
    if given("trainer.num_nodes") not in (ABSENT, 1):
        raise UserError(
            f"trainer.num_nodes={given('trainer.num_nodes')}: a run is of one machine; give trainer.devices for more "
            "devices of it"
        )
    strategy = given("trainer.strategy")
    if not isinstance(strategy, dict) and strategy not in (ABSENT, "auto", "ddp"):
        raise UserError(
            f"trainer.strategy={strategy} must be auto or ddp; give trainer=ddp, or trainer=fsdp for a sharded backbone"
        )
    betas = plain(cfg.optim).get("betas")
    if not (isinstance(betas, list) and len(betas) == 2 and all(_is_decay(b) for b in betas)):
        raise UserError(f"optim.betas={betas} must be two numbers from 0 to below 1")
    for key in ("name", "data.name", "model.name"):
        if not isinstance(OmegaConf.select(cfg, key), (str, int, float)):
            raise UserError(f"{key}={OmegaConf.select(cfg, key)} must be text")
    choice("trainer.accelerator", ("cpu", "gpu", "cuda", "auto"))
    if given("trainer.precision") not in (ABSENT, 32, "32", "32-true"):
        raise UserError(
            f"trainer.precision={cfg.trainer.precision}: adapters are trained in float32; the backbone's is model.dtype"
        )
    text("init_from", null=True)
    text("logger.tracking_uri", null=True)
    text("model.path")
    text("model.attention")
    text("model.quantization", null=True)
    text("data.template")
    text("data.prompt", null=True)
    # Where none is given, Talk of Norway is downloaded; other corpora need theirs.
    reader = str(OmegaConf.select(cfg, "data.reader._target_"))
    text("data.path", null=reader.startswith("bora.data.talk_of_norway."))
    ours = reader.startswith("bora.data.") and "path" in cfg.data.reader
    if ours and cfg.data.reader.path != given("data.path"):
        raise UserError("data.reader.path is data.path; give data.path=…")
    for key in ("data.task", "data.text", "data.date"):
        text(key, null=True)
    strings("lora.target_modules", one=True, null=True)
    strings("data.modules")
    if str(OmegaConf.select(cfg, "trainer.strategy._target_")).endswith(".ShardedBackbone"):
        if OmegaConf.select(cfg, "model.quantization") is not None:
            raise UserError("trainer=fsdp cannot shard a quantised backbone; set model.quantization=null")
        if cfg.model.compile is True:
            raise UserError("trainer=fsdp runs the backbone uncompiled; set model.compile=false")
    if cfg.model.compile is True and not _has_compiler():
        raise UserError(
            "model.compile=true needs a C++ compiler, and there is no c++ or g++ here; install one"
        )
    for key in (
        "model.compile",
        "data.drop_duplicates",
        "data.append_eos",
        "data.prepend_bos",
        "data.score_padding",
    ):
        if not isinstance(OmegaConf.select(cfg, key), bool):
            raise UserError(f"{key}={OmegaConf.select(cfg, key)} must be true or false")


def batches_limit(cfg: DictConfig) -> int | None:
    """Batches of an epoch that are trained on (trainer.limit_train_batches); None for all."""
    limit = cfg.trainer.get("limit_train_batches")
    return None if _is_all(limit) else limit


def _is_all(limit: Any) -> bool:
    """Whether it leaves all batches to Lightning, for whom 1 is a batch and 1.0 is all of them."""
    return limit in (ABSENT, None) or (isinstance(limit, float) and limit == 1)


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl"))


def _is_decay(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1
