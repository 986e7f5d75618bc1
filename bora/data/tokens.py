"""Texts to token ids: beginning, unscored prompt, scored text, end."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from bora.errors import UserError
from bora.lib.cache import digest, kept

# What bounds the memory for what will be cut off: a token has some 500 bytes in the tokenizer.
DOCUMENTS_AT_A_TIME, CHARACTERS_AT_A_TIME = 1024, 2**22
LONGEST = 2**23  # characters of a text: 1 to 4 GB
# A row a document: its ids, how many of them are the prompt, how many tokens were cut off.
TOKENS = pa.schema([("ids", pa.list_(pa.int32())), ("n_prompt", pa.int32()), ("n_lost", pa.int64())])


@dataclass(frozen=True)
class Encoded:
    """One document's tokens: `ids[:n_prompt]` are never scored, and the first token never is."""

    ids: np.ndarray
    n_prompt: int

    @property
    def n_scored(self) -> int:
        """Tokens whose likelihood counts: those after the prompt that have one before them."""
        return len(self.ids) - max(1, self.n_prompt)


@dataclass(frozen=True)
class Truncation:
    """What data.max_tokens cut off."""

    documents: int
    tokens: int


def encode(
    table: pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    prompt: str | None = None,
    template: str = "{text}",
    append_eos: bool = False,
    prepend_bos: bool = True,
) -> tuple[list[Encoded], Truncation]:
    """Tokenise each row's text, in the table's order.

    A document is: the tokenizer's beginning-of-text token where it puts one by itself (OPT does),
    the prompt, the text, and, if asked for, the end-of-text token; then cut to max_tokens.

    Args:
        table: columns task, text.
        max_tokens: longest document, everything included.
        prompt: text before each document, `{task}` stands for the task's name; None for none.
        template: how the text itself is written, `{text}` stands for it.
        append_eos: put the end-of-text token, scored, after each document.
        prepend_bos: begin as the tokenizer does; False: with the prompt or the text itself.

    Raises:
        UserError: max_tokens < 2, a template without its field, or a text that no memory could hold as tokens.
    """
    if max_tokens < 2:
        raise UserError(f"data.max_tokens={max_tokens} must be 2 or more: the first token is never scored")
    if "{text}" not in template:
        raise UserError(f"data.template={template!r} must hold {{text}}")
    lengths = table["text"].str.len()
    if len(table) and lengths.max() > LONGEST:
        raise UserError(
            f"the text in row {lengths.idxmax()} (counted from 0) has {lengths.max():,} characters, and at most "
            f"{LONGEST:,} can be made tokens, of which data.max_tokens={max_tokens} are kept; divide it into documents, "
            "or take it out"
        )
    how = (max_tokens, prompt, template, append_eos, prepend_bos)
    identity = fingerprint(tokenizer)
    if identity is None:
        tokens = _encode(table, tokenizer, *how)
    else:
        key = digest(["tokens", 1, identity, how, len(table)], [*table["task"], *table["text"]])
        tokens = kept("tokens", key, lambda: _encode(table, tokenizer, *how))
    ids = tokens["ids"].combine_chunks()
    # Views into one array (of our own: Arrow's may not be written to), a document each.
    documents = np.split(ids.values.to_numpy().copy(), ids.offsets.to_numpy()[1:-1]) if len(ids) else []
    lost = tokens["n_lost"].to_numpy()
    encoded = [Encoded(*one) for one in zip(documents, tokens["n_prompt"].to_pylist(), strict=True)]
    return encoded, Truncation(int((lost > 0).sum()), int(lost.sum()))


def _encode(
    table: pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    prompt: str | None,
    template: str,
    append_eos: bool,
    prepend_bos: bool,
) -> pa.Table:
    """The documents' TOKENS."""
    begin = beginning(tokenizer) if prepend_bos else []
    end = [tokenizer.eos_token_id] if append_eos else []
    prompts = dict.fromkeys(table["task"].unique(), begin)
    if prompt is not None:
        prompts = {task: begin + _ids(tokenizer, [prompt.replace("{task}", task)])[0] for task in prompts}
    parts = []
    # Neither number ever falls, so a new part begins where their sum rises.
    number = table["text"].str.len().to_numpy(np.int64).cumsum() // CHARACTERS_AT_A_TIME
    number += np.arange(len(table)) // DOCUMENTS_AT_A_TIME
    starts = [0, *(np.flatnonzero(np.diff(number)) + 1)] if len(table) else []
    for start, stop in zip(starts, [*starts[1:], len(table)], strict=True):
        part = table.iloc[start:stop]
        ids, n_prompt, n_lost = [], [], []
        texts = [template.replace("{text}", text) for text in part["text"]]
        for task, text in zip(part["task"], _ids(tokenizer, texts), strict=True):
            whole = prompts[task] + text + end
            ids.append(whole[:max_tokens])
            n_prompt.append(min(len(prompts[task]), max_tokens))
            n_lost.append(max(0, len(whole) - max_tokens))
        parts.append(pa.table([ids, n_prompt, n_lost], schema=TOKENS))
    return pa.concat_tables(parts) if parts else TOKENS.empty_table()


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A hash of all that decides a tokenizer's ids; None for one in Python, whose code decides too."""
    if not tokenizer.is_fast:
        return None
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return digest(
        [tokenizers.__version__, transformers.__version__, special], [tokenizer.backend_tokenizer.to_str()]
    )


def beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-text token, if the tokenizer puts one before a text by itself."""
    first = tokenizer("").input_ids[:1]
    return first if first and first[0] == tokenizer.bos_token_id else []


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """What `tokenizer(texts, add_special_tokens=False)` gives."""
    if not texts:
        return []
    if tokenizer.is_fast:  # spares the positions in the text and the masks, which nobody reads
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
    # verbose=False: texts longer than the model are cut here, so the warning would mislead.
    return tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
