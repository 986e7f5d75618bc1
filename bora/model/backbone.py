"""The frozen language model, reduced to hidden states and a head."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from bora.errors import UserError
from bora.model.likelihood import Head


class Backbone(nn.Module):
    """A frozen causal language model, split where its output layer begins.

    Always in evaluation mode: dropout inside a frozen model would only add noise.

    Args:
        model: a transformers causal language model.
        compile: run it compiled by torch where gradients are needed. Validation and test, which are
            short, would each have to be compiled anew, so they are not.

    Raises:
        UserError: the model is not one that the likelihood can take; see `_check`.
    """

    _scale: float  # of the logits
    _cap: float | None

    def __init__(self, model: PreTrainedModel, compile: bool = False):
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self._scale, self._cap = 1.0, None
        self._check()
        self._compiled = torch.compile(self._hidden, dynamic=True) if compile else self._hidden

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.model.dtype

    @property
    def head(self) -> Head:
        """The output layer, H → V, and what the architecture does to its logits."""
        layer = self.model.get_output_embeddings()
        return Head(layer.weight, layer.bias, self._scale, self._cap)

    @property
    def decoder(self) -> nn.Module:
        """The model without its output layer."""
        base = self.model.base_model
        # Llama 4 says that it is its own base.
        return self.model.get_submodule("model") if base is self.model else base

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[R, T] token ids, padded on the right → [R, T, H] last hidden states.

        Without a mask no real token sees the padding on its right all the same, since the model is
        causal. One is needed only where padding itself is scored (experiment=reference).
        """
        run = self._compiled if torch.is_grad_enabled() else self._hidden
        return run(input_ids, attention_mask)

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        run = self.decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return run.last_hidden_state

    @torch.no_grad()
    def _check(self) -> None:
        """Hold the model to what the likelihood takes for granted, on eight tokens.

        Logits must be the head's of the last hidden state, at most scaled or softly capped as the model's
        config says. And a position must not see the ones after it: a masked language model would read
        its targets.
        """
        config = self.model.config.get_text_config()
        ids = torch.arange(8, device=self.model.device).remainder(config.vocab_size)[None]
        hidden = self.hidden(ids)
        whole = self.model(input_ids=ids, use_cache=False).logits.float()
        for self._scale, self._cap in _logit_changes(config):
            if _close(self.head.logits(hidden).float(), whole):
                break
        else:
            raise UserError(
                f"the architecture {config.model_type!r} changes its logits after the last hidden state, and "
                "not by the output layer, a factor and a soft cap alone; choose another model"
            )
        ids[0, -1] = ids[0, 0]
        if not _close(self.hidden(ids)[:, :-1].float(), hidden[:, :-1].float()):
            raise UserError(
                f"the architecture {config.model_type!r} reads the whole text at every position; "
                "choose a causal (left-to-right) language model"
            )


def _logit_changes(config: PreTrainedConfig) -> Iterator[tuple[float, float | None]]:
    """Scale and cap of the logits as a config may mean them, the likeliest first; last, that nothing is done."""

    def given(key: str) -> float | None:
        value = getattr(config, key, None)
        # MPT's logit_scale may be a word; transformers does not read it.
        return float(value) if isinstance(value, (int, float)) and value > 0 else None

    scales = [given(key) for key in ("logit_scale", "lm_head_multiplier", "logits_scaling")]
    if scales[-1] is not None:
        scales.insert(-1, 1 / scales[-1])  # Granite divides by it, HyperCLOVA X multiplies
    for scale in (*scales, 1.0):
        for cap in dict.fromkeys((given("final_logit_softcapping"), None)):
            if scale is not None:
                yield scale, cap


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max()))
