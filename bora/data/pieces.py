"""Cut a document that is too long: its prompt is shortened, its text is cut off or goes on in further pieces."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bora.errors import UserError


class Parts(NamedTuple):
    """A whole document's tokens, by what may become of them where they are too many.

    Attributes:
        before: what is kept.
        prompt: what is shortened, never scored.
        rest: the text, which is cut off or goes on in further pieces.
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
