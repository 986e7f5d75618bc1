"""Turn texts into token ids: beginning, unscored prompt, scored text, end."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bora.config import Data
from bora.errors import UserError
from bora.lib.cache import cached_table, digest
from bora.lib.console import progress

# These bound the memory of what will be cut off: a token takes some 500 bytes in the tokenizer.
MAX_PART_DOCUMENTS, MAX_PART_CHARS = 1024, 2**22
# A row a document: its ids, how many of them are the prompt, how many tokens were cut off.
TOKENS = pa.schema([("ids", pa.list_(pa.int32())), ("n_prompt", pa.int32()), ("n_lost", pa.int64())])


@dataclass(frozen=True)
class Encoded:
    """One document's tokens: `ids[:n_prompt]` are never scored, and the first token never is."""

    ids: np.ndarray
    n_prompt: int

    @property
    def n_scored(self) -> int:
        """Count the tokens whose likelihood counts: those after the prompt that have one before them."""
        return len(self.ids) - max(1, self.n_prompt)


@dataclass(frozen=True)
class Truncation:
    """What max_tokens cut off."""

    documents: int
    tokens: int

    def describe(self, kept: float) -> str:
        """Describe it beside the tokens that are kept."""
        return f"{self.documents:,} documents, {self.tokens / (kept + self.tokens):.1%} of the tokens"


@dataclass(frozen=True)
class Tokens:
    """How text becomes tokens, in training and wherever a run is used.

    A document is: the tokenizer's beginning-of-text token where it puts one by itself (OPT does), the prompt, the
    text, and, if asked for, the end-of-text token; then cut to max_tokens.

    Args:
        tokenizer: the backbone's.
        vocabulary: how many tokens the backbone has embeddings of.
        max_tokens: longest document, everything included; 2 or more, since the first token is never scored.
        prompt: unscored text before each document, `{task}` stands for the task's name; None for none.
        template: how the text itself is written, `{text}` stands for it.
        append_eos: put the end-of-text token, scored, after each document.
        prepend_bos: begin as the tokenizer does; False: with the prompt or the text itself.
    """

    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    max_tokens: int
    prompt: str | None = None
    template: str = "{text}"
    append_eos: bool = False
    prepend_bos: bool = True

    @classmethod
    def of(cls, data: Data, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "Tokens":
        """Make the one that a config's `data` asks for.

        Raises:
            UserError: it asks for an end-of-text token, and the tokenizer has none, or one that the model does not have.
        """
        vocabulary = cast(Tensor, model.get_input_embeddings().weight).shape[0]
        for setting in ("append_eos", "score_padding"):
            end = tokenizer.eos_token_id
            if getattr(data, setting) and (end is None or end >= vocabulary):
                lacking = "the tokenizer has" if end is None else "the model's embeddings have"
                raise UserError(f"data.{setting}=true: {lacking} no end-of-text token; give data.{setting}=false")
        how = (data.max_tokens, data.prompt, data.template, data.append_eos, data.prepend_bos)
        return cls(tokenizer, vocabulary, *how)

    @property
    def names_task(self) -> bool:
        """Whether the prompt tells each document its task's name."""
        return "{task}" in (self.prompt or "")

    @cached_property
    def beginning(self) -> list[int]:
        """The beginning-of-text token, if the tokenizer puts one before a text by itself and it is asked for."""
        first = self.tokenizer("").input_ids[:1] if self.prepend_bos else []
        return first if first and first[0] == self.tokenizer.bos_token_id else []

    def before(self, task: str | None) -> list[int]:
        """Encode what stands before a text: the beginning-of-text token and the prompt.

        Args:
            task: the name for `{task}`; None only where the prompt does not hold it.
        """
        if self.prompt is None:
            return self.beginning
        prompt = self.prompt if task is None else self.prompt.replace("{task}", task)
        return self.beginning + self._ids([prompt])[0]

    def require_embeddings(self, ids: Sequence[int] | np.ndarray, where: str) -> None:
        """Check that the model knows the tokens.

        Raises:
            UserError: it has no embedding of one.
        """
        if (beyond := int(max(ids, default=0))) >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(beyond)
            raise UserError(
                f"{where} has the token {token!r}, number {beyond} of the tokenizer, and the model has embeddings of "
                f"{self.vocabulary}: the tokenizer was enlarged and the model was not; save both after "
                "model.resize_token_embeddings(len(tokenizer)), or give the tokenizer that the model came with"
            )

    def encode(self, table: pd.DataFrame) -> tuple[list[Encoded], Truncation]:
        """Tokenise each row's text, in the table's order; the tokens are cached for the next start.

        Args:
            table: columns task, text; the index is the documents' rows.

        Raises:
            UserError: a document has a token that the model does not have.
        """
        identity = fingerprint(self.tokenizer)
        if identity is None:
            tokens = self._encode(table)
        else:
            how = (self.max_tokens, self.prompt, self.template, self.append_eos, self.prepend_bos)
            key = digest(["tokens", 1, identity, how, len(table)], [*table["task"], *table["text"]])
            tokens = cached_table("tokens", key, lambda: self._encode(table))
        ids = tokens["ids"].combine_chunks()
        # Views into one array (our own: Arrow's may not be written to), one a document.
        documents = np.split(ids.values.to_numpy().copy(), ids.offsets.to_numpy()[1:-1]) if len(ids) else []
        lost = tokens["n_lost"].to_numpy()
        if len(ids.values) and pc.max(ids.values).as_py() >= self.vocabulary:
            for row, document in zip(table.index, documents, strict=True):
                self.require_embeddings(document, f"the document in row {row}")
        encoded = [Encoded(*one) for one in zip(documents, tokens["n_prompt"].to_pylist(), strict=True)]
        return encoded, Truncation(int((lost > 0).sum()), int(lost.sum()))

    def _encode(self, table: pd.DataFrame) -> pa.Table:
        """Tokenise to a table of TOKENS, a part at a time."""
        end = [self.tokenizer.eos_token_id] if self.append_eos else []
        before = {task: self.before(task) for task in table["task"].unique()}
        parts = []
        # Neither number ever falls, so a new part begins where their sum rises.
        number = table["text"].str.len().to_numpy(np.int64).cumsum() // MAX_PART_CHARS
        number += np.arange(len(table)) // MAX_PART_DOCUMENTS
        starts = [0, *(np.flatnonzero(np.diff(number)) + 1)] if len(table) else []
        for start, stop in progress([*zip(starts, [*starts[1:], len(table)], strict=True)], "tokenising"):
            part = table.iloc[start:stop]
            ids, n_prompt, n_lost = [], [], []
            texts = [self.template.replace("{text}", text) for text in part["text"]]
            for task, text in zip(part["task"], self._ids(texts), strict=True):
                document = before[task] + text + end
                ids.append(document[: self.max_tokens])
                n_prompt.append(min(len(before[task]), self.max_tokens))
                n_lost.append(max(0, len(document) - self.max_tokens))
            parts.append(pa.table([ids, n_prompt, n_lost], schema=TOKENS))
        return pa.concat_tables(parts) if parts else TOKENS.empty_table()

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Return what `tokenizer(texts, add_special_tokens=False)` gives."""
        if not texts:
            return []
        if self.tokenizer.is_fast:  # without the masks and the positions in the text, which nobody reads
            backend = self.tokenizer.backend_tokenizer
            backend.no_truncation()
            backend.no_padding()
            return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
        # verbose=False: longer texts than the model's are cut here, so the warning would mislead.
        return self.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Hash all that decides a tokenizer's ids; None for a tokenizer in Python, whose code decides too."""
    if not tokenizer.is_fast:
        return None
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return digest([tokenizers.__version__, transformers.__version__, special], [tokenizer.backend_tokenizer.to_str()])
