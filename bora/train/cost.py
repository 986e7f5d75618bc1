"""What a config costs before it is run: parameters, memory, checkpoints, documents and steps.

Parameters, θ and moments are exact; a checkpoint's size is to a per cent; what a step needs beside is about right.
Its activations are not counted: they grow with data.batch_size · data.max_tokens, and bora.train.measure tells them.
"""

from dataclasses import dataclass

from transformers import PreTrainedModel

from bora.bayes.adapters import Adapters, choose_form, disk_names
from bora.config import Config
from bora.data.batches import Batches
from bora.data.corpus import Corpus
from bora.model.likelihood import CHUNK_ELEMENTS
from bora.model.lora import Layout, linear_shape
from bora.model.quantization import BLOCK, plain_layers
from bora.model.targets import named_targets

FLOAT = 4  # bytes of float32: θ, Θ, their gradients and moments, whatever the backbone computes in


@dataclass(frozen=True)
class Cost:
    """Numbers of things; bytes where it says so.

    Attributes:
        model, dtype, attention: the backbone's name, and what was chosen for it.
        parameterization: the one that is trained.
        backbone_parameters: frozen.
        trainable_parameters: of all θ_d and Θ.
        params_per_task: P.
        n_tasks: D.
        documents: by split.
        scored_tokens: of the training documents, which an epoch sees once (trainer.limit_train_batches apart).
        truncated_tokens: cut off by data.max_tokens, of all documents.
        batches, steps: of an epoch; a step may take several batches.
        max_steps: of the whole run, at most.
        memory: bytes of what a training step holds, by what it is.
        checkpoint: bytes of last.ckpt; best.ckpt is as large.
    """

    model: str
    dtype: str
    attention: str
    parameterization: str
    backbone_parameters: int
    trainable_parameters: int
    params_per_task: int
    n_tasks: int
    documents: dict[str, int]
    scored_tokens: int
    truncated_tokens: int
    batches: int
    steps: int
    max_steps: int
    memory: dict[str, int]
    checkpoint: int

    @property
    def parameters(self) -> int:
        """Frozen and trainable."""
        return self.backbone_parameters + self.trainable_parameters

    @property
    def memory_in_all(self) -> int:
        """Bytes, without activations."""
        return sum(self.memory.values())


def cost(cfg: Config, model: PreTrainedModel, corpus: Corpus) -> Cost:
    """What the config's run costs.

    Args:
        cfg: checked.
        model: its backbone; its shape is enough (`load_backbone` with weights=False).
        corpus: its documents.

    Raises:
        UserError: lora.target_modules names no layers, or what cannot have a LoRA.
    """
    layers = named_targets(model, cfg.lora.target_modules)
    layout = Layout({name: linear_shape(layer) for name, layer in layers.items()}, cfg.lora.rank)
    form = choose_form(float(cfg.tau), cfg.prior.parameterization)
    stored = len(corpus.task_names) if "stored" in form.suffixes else 0  # rows of the [D, P] matrix
    P, trainable = layout.n_parameters, (stored + 1) * layout.n_parameters
    counts = corpus.per_task()
    lengths = corpus.documents.loc[corpus.documents["split"] == "train", "n_tokens"].tolist()
    devices = cfg.trainer.devices if isinstance(cfg.trainer.devices, int) else 1
    batches = Batches(
        lengths,
        cfg.data.batch_size,
        accumulate=cfg.trainer.accumulate_grad_batches,
        n_processes=max(1, devices),
    )
    batches.check_trainable()
    in_epoch = min(len(batches), cfg.trainer.limit_train_batches or len(batches))
    steps = -(-in_epoch // cfg.trainer.accumulate_grad_batches)
    in_all = steps * cfg.trainer.max_epochs
    return Cost(
        model=cfg.model.name,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=model.config._attn_implementation,
        parameterization=form.name,
        backbone_parameters=sum(p.numel() for p in model.parameters()),
        trainable_parameters=trainable,
        params_per_task=P,
        n_tasks=len(corpus.task_names),
        documents={
            split: int(counts[column].sum())
            for split, column in (("train", "n_train"), ("validation", "n_val"), ("test", "n_test"))
        },
        scored_tokens=int(counts["train_tokens"].sum()),
        truncated_tokens=corpus.truncation.tokens,
        batches=in_epoch,
        steps=steps,
        max_steps=min(cfg.trainer.max_steps, in_all) if cfg.trainer.max_steps > 0 else in_all,
        memory=_memory(cfg, model, P, stored),
        checkpoint=3 * FLOAT * trainable + FLOAT * stored + _around(layout, form, corpus.task_names),
    )


def _memory(cfg: Config, model: PreTrainedModel, P: int, stored: int) -> dict[str, int]:
    """Bytes by what they are of.

    Args:
        P: length of θ_d.
        stored: rows of the [D, P] matrix.
    """
    item, documents = model.dtype.itemsize, cfg.data.batch_size
    in_batch = min(documents, stored)  # tasks
    vocabulary = model.config.get_text_config().vocab_size
    whole = cfg.prior.estimator == "dense"  # then every task has a gradient in every step
    return {
        "backbone": _backbone(model, cfg.model.quantization),
        "theta": FLOAT * (stored + 1) * P,
        "gradients": FLOAT * ((stored if whole else in_batch) + 1) * P,
        "moments": 2 * FLOAT * (stored + 1) * P,
        # θ of each document in the backbone's dtype, and its gradient; at τ = ∞ they share one.
        "rows_of_a_batch": 2 * item * (documents if stored else 1) * P,
        "logits_of_a_chunk": FLOAT * min(CHUNK_ELEMENTS, documents * cfg.data.max_tokens * vocabulary),
    }


def _backbone(model: PreTrainedModel, quantization: str | None) -> int:
    """Bytes of the frozen model."""
    whole = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if quantization is None:
        return whole
    for layer in plain_layers(model).values():
        weight = layer.weight
        whole -= weight.numel() * weight.element_size()
        if quantization == "int8":  # one scale an output
            whole += weight.numel() + linear_shape(layer)[1] * weight.element_size()
        else:  # half a byte, one scale a block, and what each byte means
            whole += weight.numel() // 2 + -(-weight.numel() // BLOCK) * FLOAT + 256 * 2 * FLOAT
    return whole


def _around(layout: Layout, form: type[Adapters], task_names: list[str]) -> int:
    """Bytes of a checkpoint beside its numbers: names, loop, callbacks, and the archive's own.

    What one name or record takes was read off checkpoints; a test holds the sum to real ones.
    """
    keys = [key for suffix in form.suffixes.values() for key in disk_names(list(layout.shapes), suffix)]
    records = 16 if "stored" in form.suffixes else 12
    names = sum(len(name.encode()) + 16 for name in task_names)
    return 3300 + sum(len(key) + 106 for key in keys) + 190 * records + names
