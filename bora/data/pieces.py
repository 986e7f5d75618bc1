"""Cut documents that are too long: shorten the prompt, and cut the text off or continue it in further pieces."""

from dataclasses import astuple, dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from bora.errors import UserError

# One row for each piece: its document's index in the table, its ids and which of them are scored; and, for a document's
# first piece, how many tokens of its text and of its prompt were cut off.
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
    """The tokens of a document, or of a piece of one.

    Attributes:
        ids: token ids, at most max_tokens.
        scored: [len(ids)], whether a token is to be scored; the first is not counted, since nothing precedes it.
        document: the document's index in the table.
    """

    ids: np.ndarray
    scored: np.ndarray
    document: int

    @property
    def n_scored(self) -> int:
        """The number of tokens whose likelihood counts."""
        return int(self.scored[1:].sum())


@dataclass(frozen=True)
class Truncation:
    """How many documents and prompts max_tokens cut, and by how many tokens."""

    documents: int
    tokens: int
    prompts: int = 0
    prompt_tokens: int = 0

    def summary(self) -> dict[str, int]:
        """Return the numbers by their names in summary.json."""
        names = "truncated_documents truncated_tokens shortened_prompts shortened_prompt_tokens"
        return dict(zip(names.split(), astuple(self), strict=True))

    def describe(self, kept: float) -> str:
        """Describe the truncation.

        Args:
            kept: number of tokens that are kept.
        """
        share = self.tokens / (kept + self.tokens + self.prompt_tokens)
        text = f"{self.documents:,} documents, {share:.1%} of the tokens"
        if self.documents:
            text += "; data.long=chunk keeps them, data.max_tokens sets the length"
        if self.prompts:
            text += f"\nshortened: {self.prompts:,} prompts, by {self.prompt_tokens:,} tokens"
        return text


class Parts(NamedTuple):
    """A whole document's tokens, by what happens to them if there are too many.

    Attributes:
        before: tokens that are kept.
        prompt: tokens that may be shortened, never scored.
        rest: the text, which is cut off or continued in further pieces.
        scored: [len(rest)], whether each of these is scored.
        repeat: tokens at the start of each further piece.
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
        max_tokens: maximal length of a piece, everything included.
        long: cut off a text that is too long (cut), or divide it into pieces that score each token once (chunk).
        overlap: number of tokens that a piece repeats, unscored, from the one before it.
        prompt_truncation: the side, left or right, at which a prompt that is too long loses tokens.
    """

    max_tokens: int
    long: str
    overlap: int
    prompt_truncation: str

    def cut(self, whole: Parts, longest: int | None = None) -> tuple[list[tuple[list[int], list[bool]]], int, int]:
        """Cut a document to max_tokens, or into pieces of at most max_tokens.

        Args:
            longest: length of the longest `before` of all tasks, if texts are compared under several tasks' prompts;
                they are then cut at the same places under each.

        Returns:
            The pieces (ids, and which of them are scored); and how many tokens of the text and of the prompt are lost.

        Raises:
            UserError: a further piece has no room for text.
        """
        before, prompt, rest, scored, repeat = whole
        n = self.max_tokens - (0 if longest is None else longest - len(before))
        room = n - len(before)
        # The text has priority, but if it does not fit anyway, the prompt gets half of the room.
        fits = len(rest) <= room - (0 if before else 1)
        kept = self.shorten(prompt, room - len(rest) if fits else room // 2)
        ids = before + kept + rest
        mask = [False] * (len(ids) - len(rest)) + scored.tolist()
        # The text gets what a prompt leaves of its half, except when tasks are compared.
        even = longest is not None and prompt and not fits
        first = len(before) + len(kept) + room - room // 2 if even else n
        pieces = [(ids[:first], mask[:first])]
        if self.long == "cut":
            return pieces, max(0, len(ids) - first), len(prompt) - len(kept)
        overlap = max(self.overlap, 0 if repeat else 1)  # the first token of a piece is not scored
        step = n - len(repeat) - overlap
        if step < 1 and len(ids) > first:
            raise UserError(
                f"data.max_tokens={self.max_tokens} leaves no room in a piece after the prompt and "
                f"data.overlap={overlap}; raise it"
            )
        for begin in range(first, len(ids), max(1, step)):
            context = repeat + ids[begin - overlap : begin]
            more = mask[begin : begin + step]
            pieces.append((context + ids[begin : begin + step], [False] * len(context) + more))
        return [piece for piece in pieces if any(piece[1][1:])] or pieces[:1], 0, len(prompt) - len(kept)

    def shorten(self, prompt: list[int], room: int) -> list[int]:
        """Shorten a prompt to the room, at the side that is chosen."""
        lost = max(0, len(prompt) - max(0, room))
        return prompt[lost:] if self.prompt_truncation == "left" else prompt[: len(prompt) - lost]


def to_pieces(tokens: pa.Table) -> list[Encoded]:
    """Turn a table of TOKENS into pieces: views of one array, which is a copy, since Arrow's is read-only."""
    if not len(tokens):
        return []
    ids, scored = (tokens[name].combine_chunks() for name in ("ids", "scored"))
    cuts = ids.offsets.to_numpy()[1:-1]
    columns = (np.split(a.values.to_numpy(zero_copy_only=False).copy(), cuts) for a in (ids, scored))
    return [Encoded(*one) for one in zip(*columns, tokens["document"].to_pylist(), strict=True)]
