"""A document's pieces. One that is too long is cut: its prompt is shortened, its text cut off or continued in others."""

from dataclasses import astuple, dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from bora.errors import UserError

# A row a piece: its document's place in the table, its ids and which of them are scored; and, at a document's first
# piece, how many tokens of its text and of its prompt were cut off.
TOKENS = pa.schema(
    [
        ("document", pa.int64()),
        ("ids", pa.list_(pa.int32())),
        ("scored", pa.list_(pa.bool_())),
        ("n_lost", pa.int64()),
        ("n_lost_prompt", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Encoded:
    """A document's tokens, or those of a piece of it.

    Attributes:
        ids: at most max_tokens.
        scored: [len(ids)], whether a token is of the text; the first has nothing before it, so it does not count.
        document: the document's place in the table.
    """

    ids: np.ndarray
    scored: np.ndarray
    document: int

    @property
    def n_scored(self) -> int:
        """Count the tokens whose likelihood counts."""
        return int(self.scored[1:].sum())


@dataclass(frozen=True)
class Truncation:
    """How many documents max_tokens cut, and by how many tokens; and how many prompts."""

    documents: int
    tokens: int
    prompts: int = 0
    prompt_tokens: int = 0

    def summary(self) -> dict[str, int]:
        """Name the numbers as summary.json does."""
        names = "truncated_documents truncated_tokens shortened_prompts shortened_prompt_tokens"
        return dict(zip(names.split(), astuple(self), strict=True))

    def describe(self, kept: float) -> str:
        """Describe it beside the tokens that are kept."""
        share = self.tokens / (kept + self.tokens + self.prompt_tokens)
        text = f"{self.documents:,} documents, {share:.1%} of the tokens"
        if self.documents:
            text += "; data.long=chunk keeps them, data.max_tokens sets the length"
        if self.prompts:
            text += f"\nshortened: {self.prompts:,} prompts, by {self.prompt_tokens:,} tokens"
        return text


class Parts(NamedTuple):
    """A whole document's tokens, by what may become of them where they are too many.

    Attributes:
        before: what is kept.
        prompt: what is shortened, never scored.
        rest: the text, which is cut off or continued in further pieces.
        scored: [len(rest)].
        repeat: what stands before each further piece.
    """

    before: list[int]
    prompt: list[int]
    rest: list[int]
    scored: np.ndarray
    repeat: list[int]


@dataclass(frozen=True)
class Cutter:
    """How documents are cut.

    Args:
        max_tokens: of a piece, everything included.
        long: cut a text that is too long, or chunk it: into pieces that together score every token of it once.
        overlap: tokens that a piece repeats, unscored, of the one before it.
        prompt_truncation: the side, left or right, at which a prompt that is too long loses tokens.
    """

    max_tokens: int
    long: str
    overlap: int
    prompt_truncation: str

    def cut(self, whole: Parts, longest: int | None = None) -> tuple[list[tuple[list[int], list[bool]]], int, int]:
        """Cut a document to max_tokens, or into pieces of them.

        Args:
            longest: tokens of the longest `before` of all tasks, where texts are compared under several tasks' prompts:
                they are cut at the same places under each.

        Returns:
            The pieces: ids, and which of them are scored; and how many tokens of its text and of its prompt are lost.

        Raises:
            UserError: there is no room for a text in a further piece.
        """
        before, prompt, rest, scored, repeat = whole
        n = self.max_tokens - (0 if longest is None else longest - len(before))
        room = n - len(before)
        # The text comes first; but one that does not fit anyway leaves the prompt half of the room.
        fits = len(rest) <= room - (0 if before else 1)
        kept = self.shorten(prompt, room - len(rest) if fits else room // 2)
        ids = before + kept + rest
        mask = [False] * (len(ids) - len(rest)) + scored.tolist()
        # A prompt that has less than its half leaves more of the text, but not where tasks are compared.
        even = longest is not None and prompt and not fits
        first = len(before) + len(kept) + room - room // 2 if even else n
        pieces = [(ids[:first], mask[:first])]
        if self.long == "cut":
            return pieces, max(0, len(ids) - first), len(prompt) - len(kept)
        overlap = max(self.overlap, 0 if repeat else 1)  # the first token of a piece is not scored
        step = n - len(repeat) - overlap
        if step < 1 and len(ids) > first:
            raise UserError(
                f"data.max_tokens={self.max_tokens} leaves a piece no room behind the prompt and data.overlap={overlap}; "
                "raise it"
            )
        for begin in range(first, len(ids), max(1, step)):
            context = repeat + ids[begin - overlap : begin]
            more = mask[begin : begin + step]
            pieces.append((context + ids[begin : begin + step], [False] * len(context) + more))
        return [piece for piece in pieces if any(piece[1][1:])] or pieces[:1], 0, len(prompt) - len(kept)

    def shorten(self, prompt: list[int], room: int) -> list[int]:
        """Take tokens off a prompt, at the side that is chosen."""
        lost = max(0, len(prompt) - max(0, room))
        return prompt[lost:] if self.prompt_truncation == "left" else prompt[: len(prompt) - lost]


def to_pieces(tokens: pa.Table) -> list[Encoded]:
    """Turn a table of TOKENS into pieces: views into one array, a copy, since Arrow's may not be written to."""
    if not len(tokens):
        return []
    ids, scored = (tokens[name].combine_chunks() for name in ("ids", "scored"))
    cuts = ids.offsets.to_numpy()[1:-1]
    columns = (np.split(a.values.to_numpy(zero_copy_only=False).copy(), cuts) for a in (ids, scored))
    return [Encoded(*one) for one in zip(*columns, tokens["document"].to_pylist(), strict=True)]
