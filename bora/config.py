"""The schema of a run's config: types, ranges, choices, and the rules between settings.

conf/ holds every value and says what it means; here stands what a value may be. `parse` turns the plain values that
Hydra composed, or that a run's config.yaml holds, into typed groups. Nothing after it sees a DictConfig.
"""

import difflib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bora.errors import UserError

MAX_COUNT = 2**31 - 1  # of what is counted: documents in a batch, epochs, a LoRA's rank
MAX_SEED = 2**32 - 1

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Tau = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Dtype = Literal["float32", "bfloat16"]
# A name may look like a number on the command line: data.name=2024.
Name = Annotated[str, BeforeValidator(lambda v: str(v) if type(v) in (int, float) else v)]


class Group(BaseModel):
    """A closed group of settings: an unknown key is refused, and no value is converted to another type."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_assignment=True)


class Split(Group):
    method: Literal["random", "date", "reference"]
    validation: Fraction
    test: Fraction
    seed: Annotated[int, Field(ge=0)]


class Data(Group):
    """What every corpus has."""

    name: Name
    levels: list[Name]
    selection: Literal["largest", "chronological", "alphabetical", "paper", "reference"]
    n_tasks: Annotated[int, Field(ge=1)] | None
    min_documents: Annotated[int, Field(ge=0)] | None
    max_documents: Annotated[int, Field(ge=1)] | None
    documents_per_task: Annotated[int, Field(ge=3)] | list[Annotated[int, Field(ge=3)]] | None
    min_characters: Annotated[int, Field(ge=0)]
    drop_duplicates: bool
    split: Split
    max_tokens: Annotated[int, Field(ge=2)]
    prompt: str | None
    prompt_truncation: Literal["left", "right"]
    template: str
    chat_template: bool
    long: Literal["cut", "chunk"]
    overlap: Annotated[int, Field(ge=0)]
    prepend_bos: bool
    append_eos: bool | None
    score_padding: bool
    order: Literal["bucketed", "shuffled", "fixed"]
    batch_size: Count
    eval_batch_size: Count


class Columns(Data):
    """A corpus that is a table with columns."""

    task: Name | None
    text: Name
    messages: Name | None
    date: Name | None


class TableData(Columns):
    source: Literal["table"]
    path: str


class DatasetsData(Columns):
    source: Literal["datasets"]
    path: str
    split_name: str
    subset: str | None


class TalkOfNorwayData(Columns):
    source: Literal["talk_of_norway"]
    path: str | None
    url: str


class FrameData(Columns):
    source: Literal["frame"]
    sha256: str | None


class StdlibData(Data):
    source: Literal["stdlib"]
    text: str
    modules: Annotated[list[str], Field(min_length=1)]


class Model(Group):
    """What every backbone has."""

    name: Name
    dtype: Literal["float32", "bfloat16", "auto"]
    quantization: Literal["int8", "nf4"] | None
    attention: str
    compile: bool
    cuda_graphs: bool
    gradient_checkpointing: bool


class HubModel(Model):
    source: Literal["hub"]
    path: str


class PackagedModel(Model):
    source: Literal["packaged"]
    asset: str


class GGUFModel(Model):
    source: Literal["gguf"]
    package: str


class RandomModel(Model):
    source: Literal["random"]
    config: dict[str, Any]


class LoRA(Group):
    rank: Count
    alpha: Annotated[float, Field(gt=0, le=1e9)]
    rslora: bool
    target_modules: str | Annotated[list[str], Field(min_length=1)] | None
    init_std: Annotated[float, Field(ge=0, le=1e9)]
    dropout: Annotated[float, Field(ge=0, lt=1)]

    @property
    def effective_alpha(self) -> float:
        """The α whose α/r scales the update; with rslora it is α√r, which every reader of an adapter understands."""
        return self.alpha * math.sqrt(self.rank) if self.rslora else self.alpha


class Prior(Group):
    parameterization: Literal["centered", "noncentered"]
    penalty: Literal["gaussian", "norm"]
    estimator: Literal["by_document", "dense"]


class Optim(Group):
    lr: Annotated[float, Field(gt=0, le=1e9)] | None
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    eps: Annotated[float, Field(gt=0, le=1)]
    schedule: Literal["constant", "linear", "cosine"]
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_COUNT)]
    clip: Annotated[float, Field(gt=0, le=1e9)] | None
    patience: Annotated[int, Field(ge=1)]
    nonfinite: Literal["stop", "skip"]


class Trainer(Group):
    accelerator: Literal["cpu", "gpu", "cuda", "auto"]
    devices: Count | Literal["auto"]
    num_nodes: Count
    strategy: Literal["auto", "ddp", "fsdp"]
    max_epochs: Annotated[int, Field(ge=1)]
    max_steps: Annotated[int, Field(ge=-1)]
    accumulate_grad_batches: Count
    log_every_n_steps: Annotated[int, Field(ge=1)]
    limit_train_batches: Annotated[int, Field(ge=1)] | None
    val_check_interval: Annotated[int, Field(ge=1)] | Fraction | None
    extra: dict[str, Any]


class Logger(Group):
    """What every logger has."""

    task_lines: Annotated[int, Field(ge=0)]
    samples: Annotated[int, Field(ge=0)]


class NoLogger(Logger):
    kind: Literal["none"]


class WandbLogger(Logger):
    kind: Literal["wandb"]
    project: str
    entity: str | None
    mode: Literal["auto", "online", "offline"]
    artifact: bool


class MLflowLogger(Logger):
    kind: Literal["mlflow"]
    tracking_uri: str | None
    artifact: bool


class TensorBoardLogger(Logger):
    kind: Literal["tensorboard"]


AnyData = TableData | DatasetsData | TalkOfNorwayData | FrameData | StdlibData
AnyModel = HubModel | PackagedModel | GGUFModel | RandomModel
AnyLogger = NoLogger | WandbLogger | MLflowLogger | TensorBoardLogger
# Groups whose settings depend on one of them → that one.
DISCRIMINATORS = {"data": "source", "model": "source", "logger": "kind"}


class Config(Group):
    """One run."""

    tau: Tau | Literal["learn"] | Annotated[list[Tau], Field(min_length=1)]
    likelihood: Literal["sum", "task_mean"]
    seed: Seed
    init_from: str | None
    resume: Literal["auto", "never"]
    checkpoint_minutes: Annotated[float, Field(ge=0)]
    name: Name
    data: Annotated[AnyData, Field(discriminator="source")]
    model: Annotated[AnyModel, Field(discriminator="source")]
    lora: LoRA
    prior: Prior
    optim: Optim
    trainer: Trainer
    logger: Annotated[AnyLogger, Field(discriminator="kind")]

    @property
    def task_tau(self) -> float | Literal["learn"]:
        """τ of the tasks."""
        return self.tau[0] if isinstance(self.tau, list) else self.tau

    @property
    def level_taus(self) -> list[float]:
        """τ of each of data.levels; none where it is learned."""
        if isinstance(self.tau, list):
            return self.tau[1:]
        return [] if self.tau == "learn" else [self.tau] * len(self.data.levels)

    @property
    def records_steps(self) -> bool:
        """Whether training on a GPU is replayed from recordings (bora.model.graphs).

        Not with fsdp, which moves weights within a step; nor with gradient checkpointing, as recordings take the memory
        that it saves; nor with dropout, since their shapes are rounded up, so masks would differ after a resume.
        """
        sharded, model = self.trainer.strategy == "fsdp", self.model
        return model.cuda_graphs and not (sharded or model.gradient_checkpointing or self.lora.dropout)


def conf_folder() -> Path:
    """Find conf/: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Turn nested dictionaries into one whose keys are joined by dots; lists, and empty dictionaries, are values."""
    if isinstance(values, dict) and values:
        return {k: v for key, child in values.items() for k, v in flatten(child, f"{prefix}{key}.").items()}
    return {prefix[:-1]: values}


def parse(values: dict[str, Any]) -> Config:
    """Check plain values against the schema.

    Raises:
        UserError: with a line for every problem that there is.
    """
    problems = [secret for key, value in flatten(values).items() if (secret := find_secret(key, value))]
    try:
        config = Config.model_validate(_without_missing(values))
    except ValidationError as error:
        raise UserError("\n".join([*problems, *_describe(error, values)])) from error
    problems += rules(config)
    if problems:
        raise UserError("\n".join(problems))
    return config


# What bora itself decides for Lightning's Trainer → why, or what to give instead.
_REASONS = {
    "limit_val_batches limit_test_batches": "validation and test read all their documents; for fewer, give "
    "data.documents_per_task",
    "fast_dev_run overfit_batches": "validation would be left out, which chooses the epoch; for a short run give "
    "trainer.max_steps",
    "gradient_clip_val": "give optim.clip",
    "precision": "adapters are trained in float32; the backbone's precision is model.dtype",
    "callbacks logger plugins use_distributed_sampler num_sanity_val_steps enable_model_summary": "bora sets it itself",
}
RESERVED = {key: why for keys, why in _REASONS.items() for key in keys.split()}


def rules(config: Config) -> Iterator[str]:
    """Yield a line for each rule between settings that is broken."""
    trainer, split = config.trainer, config.data.split
    if trainer.max_steps == 0:
        yield "trainer.max_steps=0 trains nothing; give 1 or more, or -1 for no bound"
    if split.validation + split.test >= 1:
        yield (
            f"data.split.validation={split.validation} and data.split.test={split.test} leave nothing to train on; "
            "their sum must be below 1"
        )
    if "{text}" not in config.data.template:
        yield f"data.template={config.data.template!r} must hold {{text}}"
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
            f"tau={config.tau} has {len(config.tau)} values, and the task and data.levels={config.data.levels} need "
            f"{1 + len(config.data.levels)}"
        )
    if config.data.levels:
        yield from _rules_of_levels(config)
    if config.tau == "learn":
        yield from _rules_of_learning(config)
    if config.likelihood == "task_mean" and (trainer.devices, trainer.num_nodes) != (1, 1):
        yield "likelihood=task_mean averages over a whole batch, so it needs trainer.devices=1 trainer.num_nodes=1"
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


DEVIATIONS = {"prior.parameterization": "noncentered", "prior.penalty": "gaussian"}  # what deviations are made for


def _other_than(needed: dict[str, Any], config: Config, what: str, instead: str) -> Iterator[str]:
    """Yield a line for each setting that is another than the one that `what` is made for."""
    given = flatten(config.model_dump())
    for key, only in needed.items():
        if given[key] != only:
            yield f"{key}={given[key]}: {what} made for {key}={only}; give that, or {instead}"


def _rules_of_levels(config: Config) -> Iterator[str]:
    """Yield a line for each setting that levels do not have."""
    columns = config.data.levels
    for column in columns:
        if columns.count(column) > 1 or column in (getattr(config.data, "task", None), "task"):
            yield f"data.levels={columns}: {column} is named twice, or is the tasks' column; leave it out"
            break
        if column in (getattr(config.data, "text", None), getattr(config.data, "messages", None)):
            yield f"data.levels={columns}: {column} is the document itself"
    if config.tau != "learn" and not all(0 < float(tau) < math.inf for tau in (config.task_tau, *config.level_taus)):
        yield f"tau={config.tau} with data.levels: each must be above 0 and finite; without a level remove its column"
    yield from _other_than(DEVIATIONS, config, "data.levels are", "data.levels=[]")


def _rules_of_learning(config: Config) -> Iterator[str]:
    """Yield a line for each setting that tau=learn does not have."""
    needed = DEVIATIONS | {"prior.estimator": "by_document", "likelihood": "sum", "lora.init_std": 0}
    yield from _other_than(needed, config, "tau=learn is", "a number for tau")
    if config.trainer.max_epochs == 1 and config.trainer.val_check_interval is None:
        yield (
            "trainer.max_epochs=1: tau=learn needs two validations, one for Θ and one for the tasks' deviations; "
            "give 2 epochs or more, or trainer.val_check_interval"
        )


def find_secret(key: str, value: Any) -> str | None:
    """Describe a value that holds a secret, or would fetch one, without repeating it; None for any other.

    A run's files repeat its config, so a config is no place for secrets.
    """
    if not isinstance(value, str) or key in ("data.prompt", "data.template"):
        return None
    authority, _, rest = value.partition("://")[2].partition("/")
    port = authority.rpartition(":")[2]
    # A password may hold a slash that should have been written %2F: then it ends in the rest.
    if "@" in authority or (":" in authority and not port.isdigit() and "@" in rest):
        what = "a URL with a user or password in it"
    elif "${oc.env:" in value:
        what = "read from the environment"
    else:
        return None
    return (
        f"{key}: {what}. A run's files repeat its config, so give secrets by the environment alone: "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, WANDB_API_KEY, HF_TOKEN"
    )


def _without_missing(values: Any) -> Any:
    """Leave out what OmegaConf marks as missing, ???, so that it is reported as missing."""
    if not isinstance(values, dict):
        return values
    return {key: _without_missing(value) for key, value in values.items() if value != "???"}


def _describe(error: ValidationError, values: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each setting that pydantic refused: which, its value, what it must be."""
    expected: dict[str, list[str]] = {}
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        if place[0] in DISCRIMINATORS and len(place) > 1:
            del place[1]  # pydantic names the member of the union there
        key = ".".join(place)
        match problem["type"]:
            case "extra_forbidden":  # its value may be a secret
                yield f"{key}: there is no such setting{_suggest(key, values)}"
            case "missing":
                yield f"{key} is needed and has no default; give {key}=…"
            case "union_tag_invalid" | "union_tag_not_found":
                yield f"{key}.{DISCRIMINATORS[key]} must be one of {', '.join(_members(key))}; give {key}=NAME"
            case _:
                # Where a setting may be of several types, pydantic adds the type that it tried.
                while len(place) > 1 and _value_at(values, place) is _ABSENT:
                    place.pop()
                expected.setdefault(".".join(place), []).append(problem["msg"].removeprefix("Input should be "))
    for key, messages in expected.items():
        value = _value_at(values, key.split("."))
        if key == "tau":
            messages = ["a number from 0 to inf, or learn; with data.levels also a list of numbers"]
        yield f"{key}={'null' if value is None else value} must be {' or '.join(dict.fromkeys(messages))}"


_ABSENT = object()


def _value_at(values: Any, place: list[str]) -> Any:
    for part in place:
        if isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        elif isinstance(values, dict):
            values = values.get(part, _ABSENT)
        else:
            return _ABSENT
    return values


def _suggest(key: str, values: dict[str, Any]) -> str:
    """Name the setting that was meant, as far as it can be guessed."""
    group, _, name = key.partition(".")
    if group == "trainer" and name in RESERVED:
        return f"; {RESERVED[name]}"
    if group in DISCRIMINATORS:
        having = [choice for choice, member in _members(group).items() if name in member.model_fields]
        if having:
            chosen = values[group].get(DISCRIMINATORS[group])
            others = ", ".join(f"{group}={choice}" for choice in having)
            return f" for {group}={chosen}, only for {others}; give {group}={having[0]} {key}=…"
    close = [k for k in _known_keys({}) if k.rpartition(".")[2] == key]
    close = close or difflib.get_close_matches(key, _known_keys(values), n=1)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _members(group: str) -> dict[str, type[Group]]:
    """Map each choice of a group's discriminator to its class."""
    members = get_args({"data": AnyData, "model": AnyModel, "logger": AnyLogger}[group])
    return {get_args(m.model_fields[DISCRIMINATORS[group]].annotation)[0]: m for m in members}


def _known_keys(values: dict[str, Any]) -> list[str]:
    """List every setting that there is beside the chosen sources, or, where none is chosen, for any of them."""

    def walk(owner: type[Group], prefix: str) -> Iterator[str]:
        for name, field in owner.model_fields.items():
            kinds: list[Any] = [field.annotation]
            if name in DISCRIMINATORS and not prefix:
                members, chosen = _members(name), values.get(name)
                choice = chosen.get(DISCRIMINATORS[name]) if isinstance(chosen, dict) else None
                kinds = [members[choice]] if choice in members else [*members.values()]
            for kind in kinds:
                if isinstance(kind, type) and issubclass(kind, Group):
                    yield from walk(kind, f"{prefix}{name}.")
                else:
                    yield prefix + name

    return list(dict.fromkeys(walk(Config, "")))
