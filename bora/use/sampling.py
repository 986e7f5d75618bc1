"""How to continue a text: the options of `bora.use.generate`, named as in transformers."""

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import GenerationConfig

from bora.config.schema import Count, Positive, Seed
from bora.errors import UserError

OWN = {"seed", "batch_size", "num_return_sequences"}  # options that are not passed to transformers' generate
OF_DRAWING = ("temperature", "top_k", "top_p")


class Sampling(BaseModel):
    """How to continue a text. None stands for the value in the model's generation config.

    Raises:
        ValidationError: an option is unknown or out of its range.
        UserError: an option changes nothing without do_sample.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_new_tokens: Count = Field(64, description="tokens after the prompt, at most (64)")
    do_sample: bool = Field(False, description="draw from the distribution; else take the likeliest token each time")
    temperature: Positive | None = Field(None, description="divide the logits by it (the model's own, else 1)")
    top_k: Annotated[int, Field(ge=0)] | None = Field(
        None, description="draw from the N likeliest tokens; 0 for all (the model's own, else 50)"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="draw from the likeliest tokens of this total probability (the model's own, else 1)"
    )
    repetition_penalty: Positive | None = Field(
        None, description="above 1, make tokens that have occurred less likely (the model's own, else 1)"
    )
    num_return_sequences: Count = Field(1, description="answers to each prompt by each task (1)")
    seed: Seed = Field(0, description="random seed; the draws depend on the whole batch, too (0)")
    batch_size: Count = Field(64, description="rows (prompt × task × answer) at once; limits the memory (64)")

    @model_validator(mode="after")
    def _require_do_sample(self) -> "Sampling":
        if not self.do_sample:
            if any(getattr(self, name) is not None for name in OF_DRAWING):
                raise UserError("temperature, top-k and top-p have no effect without --do-sample (do_sample=True)")
            if self.num_return_sequences > 1:
                raise UserError("several answers need --do-sample (do_sample=True): without it all would be the same")
        return self

    def to_transformers(self, ends: Collection[int], own: GenerationConfig) -> GenerationConfig:
        """Make the config for transformers' `generate`. It asks for one answer to each row; bora repeats the rows itself.

        Args:
            ends: tokens that end a text; one of them also pads a row until the batch's last row has ended.
            own: the model's config, from which only the options of this class are taken.
        """
        taken = ("repetition_penalty", *(OF_DRAWING if self.do_sample else ()))
        of_model = {name: value for name in taken if (value := getattr(own, name)) is not None}
        given: dict[str, Any] = of_model | self.model_dump(exclude=OWN, exclude_none=True)
        return GenerationConfig(**given, eos_token_id=sorted(ends) or None, pad_token_id=min(ends, default=0))
