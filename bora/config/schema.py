"""The schema of a run's config: types, ranges, choices. conf/ holds all values, with their meaning."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_COUNT = 2**31 - 1  # of documents in a batch, steps, a LoRA's rank
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
    """Settings of every corpus."""

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


class TabularData(Data):
    """A corpus that is a table with columns."""

    task: Name | None
    text: Name
    messages: Name | None
    date: Name | None


class TableData(TabularData):
    source: Literal["table"]
    path: str


class DatasetsData(TabularData):
    source: Literal["datasets"]
    path: str
    split_name: str
    subset: str | None


class TalkOfNorwayData(TabularData):
    source: Literal["talk_of_norway"]
    path: str | None
    url: str


class FrameData(TabularData):
    source: Literal["frame"]
    sha256: str | None


class StdlibData(Data):
    source: Literal["stdlib"]
    text: str
    modules: Annotated[list[str], Field(min_length=1)]


class Model(Group):
    """Settings of every backbone."""

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
        """The α for which α/r scales the update: with rslora α√r, which every reader of adapters understands."""
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
    average: bool
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
    """Settings of every logger."""

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
# Groups whose settings depend on one of these settings → that setting.
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
        """τ of each of data.levels; empty for tau=learn."""
        if isinstance(self.tau, list):
            return self.tau[1:]
        return [] if self.tau == "learn" else [self.tau] * len(self.data.levels)

    @property
    def records_steps(self) -> bool:
        """Whether training on a GPU is replayed from recordings (bora.model.graphs).

        Not with fsdp, which moves weights within a step; nor with gradient checkpointing, as recordings take the memory
        that it saves; nor with dropout, since shapes are rounded up, so masks would differ after resuming.
        """
        sharded, model = self.trainer.strategy == "fsdp", self.model
        return model.cuda_graphs and not (sharded or model.gradient_checkpointing or self.lora.dropout)


def conf_folder() -> Path:
    """Find conf/: inside the package if installed from a wheel, next to it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries, joining keys by dots; lists and empty dictionaries are values."""
    if isinstance(values, dict) and values:
        return {k: v for key, child in values.items() for k, v in flatten(child, f"{prefix}{key}.").items()}
    return {prefix[:-1]: values}
