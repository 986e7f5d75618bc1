"""How texts are continued: the flags of `bora generate`, named as in transformers."""

import argparse
import math
from collections.abc import Collection
from dataclasses import dataclass, fields

from transformers import GenerationConfig

from bora.errors import UserError

TINY = 1e-6  # above 0, for what is divided by
# Option → least and greatest value.
RANGES = {
    "max_new_tokens": (1, math.inf),
    "temperature": (TINY, math.inf),
    "top_k": (0, math.inf),
    "top_p": (TINY, 1),
    "repetition_penalty": (TINY, math.inf),
    "num_return_sequences": (1, math.inf),
    "seed": (0, 2**63 - 1),
    "batch_size": (1, math.inf),
}


@dataclass(frozen=True)
class Options:
    """How to continue; named as in transformers. None: as the backbone's generation config has it.

    Attributes:
        max_new_tokens: tokens after the prompt, at most.
        do_sample: draw from the distribution; else always the likeliest token.
        temperature, top_k, top_p: of the drawing.
        repetition_penalty: above 1, tokens that are there already become less likely.
        num_return_sequences: answers to each prompt by each task.
        seed: of the drawing. What is drawn depends on the whole batch: the same command gives the same.
        batch_size: rows (prompt × task × answer) computed at once; bounds the memory.
    """

    max_new_tokens: int = 64
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    num_return_sequences: int = 1
    seed: int = 0
    batch_size: int = 64

    def check(self) -> None:
        """
        Raises:
            UserError: a value out of its range, or one that only drawing uses without do_sample.
        """
        for name, (lowest, highest) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value <= highest:
                bound = f"or more and {highest:g} or less" if highest < math.inf else "or more"
                raise UserError(f"{_flag(name)} {value}: must be {lowest:g} {bound}")
        if not self.do_sample:
            for name in ("temperature", "top_k", "top_p"):
                if getattr(self, name) is not None:
                    raise UserError(f"{_flag(name)} changes nothing without --do-sample")
            if self.num_return_sequences > 1:
                raise UserError("--num-return-sequences: without --do-sample all of them would be the same")

    def of_transformers(self, ends: Collection[int], pad: int | None) -> GenerationConfig:
        """For one row at a time: rows are multiplied here and not there, so that each keeps its θ.

        Args:
            ends: tokens that end a text.
            pad: stands behind the end of a text until the batch's last one has ended.
        """
        given = {name: getattr(self, name) for name in FLAGS if name not in ("seed", "batch_size")}
        given |= {"do_sample": self.do_sample, "num_return_sequences": 1, "num_beams": 1}
        given |= {"eos_token_id": sorted(ends) or None, "pad_token_id": pad}
        return GenerationConfig(**{name: value for name, value in given.items() if value is not None})


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


# Flag → its type and what --help says of it.
FLAGS = {
    "max_new_tokens": (int, "tokens after the prompt, at most (64)"),
    "temperature": (float, "of the drawing (the model's own, else 1)"),
    "top_k": (int, "draw from so many likeliest tokens; 0 for all (the model's own, else 50)"),
    "top_p": (float, "draw from the likeliest tokens of this probability together (the model's own, else 1)"),
    "repetition_penalty": (float, "above 1: what is there already is less likely (the model's own, else 1)"),
    "num_return_sequences": (int, "answers to each prompt by each task (1)"),
    "seed": (int, "of the drawing (0)"),
    "batch_size": (int, "rows (prompt × task × answer) at once (64)"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """A flag for each of the Options."""
    parser.add_argument("--do-sample", action="store_true", help="draw; else the likeliest token each time")
    for name, (kind, meaning) in FLAGS.items():
        parser.add_argument(_flag(name), type=kind, default=getattr(Options, name), metavar="N", help=meaning)


def options_of(arguments: argparse.Namespace) -> Options:
    """The Options that were given on the command line, not yet checked."""
    return Options(**{field.name: getattr(arguments, field.name) for field in fields(Options)})
