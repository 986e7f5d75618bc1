"""A frozen language model that runs each row of a batch under its own θ."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel

from bora.errors import UserError
from bora.model.adapted import UPDATE, Update, adapt_layer, updated
from bora.model.batch import Batch
from bora.model.compiled import check_blocks, compilation
from bora.model.graphs import Recorder
from bora.model.likelihood import Head, document_nll
from bora.model.lora import Layout, linear_shape
from bora.model.norms import fuse_norms
from bora.model.pretrained import max_positions
from bora.model.targets import find_targets
from bora.model.unpadded import unpadded

# On a GPU: torch's order, without cuDNN's attention, which builds a new plan for every number of documents and of tokens.
# In bucketed batches these are new in nearly every step.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # a soft cap's names in configs


class Backbone(nn.Module):
    """A frozen causal language model whose target layers add a low-rank update, another one for each row.

    One forward serves a batch of mixed tasks: each target layer adds two batched products to its output (eq. 3); its
    weights never change. Always in evaluation mode, since dropout inside a frozen model would only add noise.

    Attributes:
        layout: where in θ each target layer's factors are.
        scale: α/r, the factor of the updates.

    Args:
        model: a transformers causal language model; this freezes it.
        target_modules: the layers with an update; see bora.model.targets.
        rank: r ≥ 1.
        alpha: LoRA's α.
        compile: compile the blocks for training, once for all blocks of a kind; see bora.model.compiled.
        cuda_graphs: on a GPU, replay training's forward and backward from recordings; see bora.model.graphs.
        gradient_checkpointing: keep only each block's input for the backward, which runs the block again.

    Raises:
        UserError: the likelihood cannot take the model (see `_check`), or a layer cannot have a LoRA (see
            `find_targets`).
    """

    _scale: float  # the logits' factor
    _cap: float | None  # their soft cap

    def __init__(
        self,
        model: PreTrainedModel,
        target_modules: str | list[str] | None = None,
        rank: int = 16,
        alpha: float = 16,
        compile: bool = False,
        cuda_graphs: bool = False,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self._scale, self._cap = 1.0, None
        self.compiled = False  # `_check` runs uncompiled
        self._check()
        layers = find_targets(model, target_modules)
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        self.layout = Layout({name: linear_shape(layer) for name, layer in layers.items()}, rank)
        self._targets = layers
        for layer in layers.values():
            adapt_layer(layer)
        self._recorder = Recorder(self._run, max_positions(model.config))
        self._recorded = cuda_graphs
        self.compiled, self._checked = compile, set[tuple[int, bool]]()
        if compile:
            # Otherwise the first block, whose input needs no gradient, would be compiled separately.
            model.get_input_embeddings().register_forward_hook(_require_gradient)
            for block in blocks(self.decoder):
                block.compile(dynamic=True)
        else:  # compiled norms are one operation anyway
            fuse_norms(model)
        if gradient_checkpointing:
            for block in blocks(self.decoder):
                block.forward = partial(_run_and_keep_input, block, block.forward)

    def routed(self, theta: Tensor | None, dropout: float = 0.0) -> AbstractContextManager[None]:
        """Return a context in which row i of every forward runs under theta[i]; outside it the model is bare.

        Args:
            theta: [R, P], one for each row of the batch; [P], one for all; or None for the bare model.
            dropout: see Update.
        """
        factors = {} if theta is None else self.layout.factors(theta.to(self.dtype))
        return updated({self._targets[name]: Update(lora, self.scale, dropout) for name, lora in factors.items()})

    def nll(self, batch: Batch, theta: Tensor | None, dropout: float = 0.0) -> Tensor:
        """Return −log p of each document (eq. 2), [R] nats.

        Args:
            theta, dropout: as in `routed`.
        """
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        if self.compiled and theta is not None and torch.is_grad_enabled():
            self._check_compiled(ids, theta)
        recorded = self._recorded and ids.is_cuda and mask is None and not dropout and torch.is_grad_enabled()
        if recorded and theta is not None and theta.requires_grad:
            hidden = self._recorder(ids, theta.to(self.dtype))
        else:
            hidden = self._run(ids, theta, mask, dropout)
        return document_nll(hidden, batch["labels"], self.head, batch.get("scored"))

    def _run(
        self, input_ids: Tensor, theta: Tensor | None, attention_mask: Tensor | None = None, dropout: float = 0.0
    ) -> Tensor:
        with self.routed(theta, dropout):
            return self.hidden(input_ids, attention_mask)

    def _apply(self, fn, recurse: bool = True):
        """Move or cast the model, as torch's `to`, `cpu` and `cuda` do."""
        self._recorder.forget()
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the model computes."""
        return self.model.dtype

    @property
    def head(self) -> Head:
        """The output layer, H → V, with the scale and cap of its logits."""
        layer = self.model.get_output_embeddings()
        return Head(layer.weight, layer.bias, self._scale, self._cap)

    @property
    def decoder(self) -> nn.Module:
        """The model without its output layer."""
        base = self.model.base_model
        # Llama 4 claims to be its own base model.
        return self.model.get_submodule("model") if base is self.model else base

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the last hidden states, [R, T, H], of token ids [R, T], padded on the right.

        The model is causal, so no real token sees the padding to its right. A mask is needed only if padding itself is
        scored (experiment=reference).
        """
        padding = unpadded() if attention_mask is None else nullcontext()
        with _kernels(input_ids.device), compilation() if self.compiled else nullcontext(), padding:
            run = self.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return run.last_hidden_state.to(self.head.weight.dtype)  # Mamba's is float32

    @torch.no_grad()
    def _check(self) -> None:
        """Check on eight tokens what the likelihood assumes.

        The logits must be the head's output for the last hidden state, at most scaled or softly capped as the config
        says. And a position must not see later ones: a masked language model would read its targets.
        """
        config = self.model.config.get_text_config()
        # From the middle of the vocabulary: an architecture may treat an id such as padding's specially.
        ids = (config.vocab_size // 2 + torch.arange(8, device=self.model.device)).remainder(config.vocab_size)[None]
        hidden = self.hidden(ids)
        with _kernels(ids.device):
            whole = self.model(input_ids=ids, use_cache=False).logits
        if not whole.isfinite().all():
            raise UserError("the model's logits are not finite: its weights are damaged, or too large for its dtype")
        for self._scale, self._cap in _logit_changes(config):
            if _close(self.head.logits(hidden), whole):
                break
        else:
            raise UserError(
                f"the architecture {config.model_type!r} computes its logits from the last hidden state by more "
                "than the output layer, a factor and a soft cap; choose another model"
            )
        ids[0, 4:] = ids[0, :4].clone()
        if not _close(self.hidden(ids)[:, :4], hidden[:, :4]):
            raise UserError(
                f"the architecture {config.model_type!r} reads the whole text at every position; "
                "choose a causal (left-to-right) language model"
            )

    def _check_compiled(self, ids: Tensor, like: Tensor) -> None:
        """Compile the blocks when a kind of batch first occurs, and check their gradients.

        The check has this batch's sizes; a random θ, since B starts at 0; and no dropout, whose masks would differ.
        """
        kind = like.dim(), 1 in ids.shape  # torch compiles each kind separately
        if kind in self._checked:
            return
        self._checked.add(kind)
        draw = torch.Generator(like.device).manual_seed(0)
        theta = torch.randn(like.shape, generator=draw, device=like.device, dtype=self.dtype).mul_(0.02)

        def factors(block: nn.Module) -> list[Tensor]:
            updates = (getattr(layer, UPDATE, None) for layer in block.modules())
            return [factor for update in updates if update is not None for factor in update.lora]

        with self.routed(theta.requires_grad_()), _kernels(ids.device), unpadded():
            check_blocks(blocks(self.decoder), factors, lambda: self.hidden(ids))


def _require_gradient(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    """Make embeddings require a gradient if gradients are enabled; a forward hook."""
    return output.requires_grad_().clone() if torch.is_grad_enabled() else None


def _run_and_keep_input(block: nn.Module, run: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Run a block's forward, and run it again in the backward, under the same updates."""
    if not torch.is_grad_enabled():
        return run(*args, **options)
    updates = {layer: u for layer in block.modules() if (u := getattr(layer, UPDATE, None)) is not None}

    @contextmanager
    def again() -> Iterator[None]:
        with _kernels(next(block.parameters()).device), updated(updates):
            yield

    return checkpoint(
        run,
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), again()),
        preserve_rng_state=any(update.dropout for update in updates.values()),  # nothing else is random
        **options,
    )


def _kernels(device: torch.device):
    return sdpa_kernel(ATTENTION) if device.type == "cuda" else nullcontext()


def blocks(decoder: nn.Module) -> nn.ModuleList:
    """Find the decoder's transformer blocks: its module list with the most parameters."""
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda modules: sum(p.numel() for p in modules.parameters()))


def _logit_changes(config: PreTrainedConfig) -> Iterator[tuple[float, float | None]]:
    """Yield the scales and caps of the logits that a config may mean, the likeliest first and none of either last."""

    def given(key: str) -> float | None:
        value = getattr(config, key, None)
        # MPT's logit_scale may be a word, which transformers ignores.
        return float(value) if isinstance(value, (int, float)) and value > 0 else None

    scales = [given(key) for key in ("logit_scale", "lm_head_multiplier", "logits_scaling")]
    if scales[-1] is not None:
        scales.insert(-1, 1 / scales[-1])  # Granite divides by it, HyperCLOVA X multiplies
    for scale in (*scales, 1.0):
        for cap in dict.fromkeys((*map(given, CAPS), None)):
            if scale is not None:
                yield scale, cap


def _close(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether activations are equal up to the rounding of their dtype."""
    rounding = 1e-4 if ours.dtype in (torch.float32, torch.float64) else 1e-2
    return torch.allclose(ours.float(), theirs.float(), rtol=rounding, atol=rounding * float(theirs.abs().max()))
