"""Turn documents into pieces of at most max_tokens token ids: beginning, unscored prompt, scored text, end."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bora.config.schema import Data
from bora.data.chat import Message, begin_answer, encode_chat, end_of_turn, find_question, render_within
from bora.data.columns import to_text
from bora.data.pieces import TOKENS, Cutter, Encoded, Parts, Truncation, to_pieces
from bora.data.prompts import PLACEHOLDER, TASK, fill, placeholders, prompt_cells, prompt_columns, show_prompt
from bora.errors import UserError
from bora.lib.cache import cached_table, digest
from bora.lib.console import progress

# These bound the memory of tokens that will be cut off: each takes some 500 bytes in the tokenizer.
MAX_PART_DOCUMENTS, MAX_PART_CHARS = 1024, 2**22
MAX_EXAMPLE_CHARS = 40  # for an example prompt


@dataclass(frozen=True)
class Tokens:
    """How documents become tokens, in training and wherever a run is used.

    A text becomes: the tokenizer's beginning-of-text token if it adds one by itself (OPT's does), the prompt, the text,
    and on request the end-of-text token. A chat is written by the chat template. The result is cut to max_tokens, or into
    pieces; a prompt that takes columns, or a chat's question, is shortened to the room that the text leaves.

    Args:
        tokenizer: the backbone's tokenizer.
        vocabulary: number of tokens for which the backbone has embeddings.
        max_tokens: length of the longest document, everything included; 2 or more, since the first token is never scored.
        prompt: unscored text before each document; `{task}` stands for the task's name, `{column}` for the document's
            cell in that column. None for no prompt.
        template: how the text itself is written, with `{text}` in its place.
        append_eos: add the end-of-text token, scored, after each document.
        prepend_bos: begin as the tokenizer does; False: begin with the prompt or the text itself.
        chat: the text is a chat (see bora.data.chat), in which the assistant's answers are scored.
        chat_template: write the prompt and the text as a chat's question and answer.
        prompt_truncation, long, overlap: see Cutter.
    """

    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    max_tokens: int
    prompt: str | None = None
    template: str = "{text}"
    append_eos: bool = False
    prepend_bos: bool = True
    chat: bool = False
    chat_template: bool = False
    prompt_truncation: str = "left"
    long: str = "cut"
    overlap: int = 0

    @classmethod
    def of(cls, data: Data, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "Tokens":
        """Make the Tokens that a config's `data` describes.

        Raises:
            UserError: it asks for an end-of-text token or a chat template, but there is none.
        """
        vocabulary = cast(Tensor, model.get_input_embeddings().weight).shape[0]
        pair = bool(prompt_columns(data.prompt)) and not data.chat_template
        append_eos = pair if data.append_eos is None else data.append_eos
        for setting, asked in (("append_eos", append_eos), ("score_padding", data.score_padding)):
            end = tokenizer.eos_token_id
            if asked and (end is None or end >= vocabulary):
                lacking = "the tokenizer has" if end is None else "the model's embeddings have"
                raise UserError(f"data.{setting}=true: {lacking} no end-of-text token; give data.{setting}=false")
        chat = getattr(data, "messages", None) is not None
        if (chat or data.chat_template) and not tokenizer.chat_template:
            setting = "messages" if chat else "chat_template"
            raise UserError(
                f"data.{setting}: the tokenizer has no chat template; choose a model that was tuned to chat"
            )
        ours = cls.__dataclass_fields__.keys() & type(data).model_fields.keys()
        how = {name: getattr(data, name) for name in ours} | {"append_eos": append_eos, "chat": chat}
        return cls(tokenizer, vocabulary, **how)

    @property
    def names_task(self) -> bool:
        """Whether the prompt contains the task's name."""
        return any(match[0] == TASK for match in PLACEHOLDER.finditer(self.prompt or ""))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that the prompt takes."""
        return prompt_columns(self.prompt)

    @property
    def answers(self) -> bool:
        """Whether each document has its own prompt, to which its text is the response."""
        return self.chat or self.chat_template or bool(self.columns)

    @cached_property
    def beginning(self) -> list[int]:
        """The tokens that the tokenizer puts before a text by itself (OPT's: beginning-of-text), if `prepend_bos`."""
        whole, plain = self.tokenizer("a").input_ids, self._ids(["a"])[0]
        n = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
        return whole[:n] if self.prepend_bos else []

    @cached_property
    def cutter(self) -> Cutter:
        """How documents that are too long are cut."""
        return Cutter(self.max_tokens, self.long, self.overlap, self.prompt_truncation)

    def before(self, task: str | None) -> list[int]:
        """Encode what precedes every text of a task: the beginning-of-text token and a prompt without columns.

        Args:
            task: the name for `{task}`; None only if the prompt does not contain it.
        """
        if self.prompt is None or self.answers:
            return [] if self.chat or self.chat_template else self.beginning
        return self.beginning + self._ids([fill(self.prompt, {TASK: task or ""})])[0]

    def require_embeddings(self, ids: Sequence[int] | np.ndarray, where: str) -> None:
        """Raise a UserError if the model has no embedding for one of the tokens."""
        if (beyond := int(max(ids, default=0))) >= self.vocabulary:
            token = self.tokenizer.convert_ids_to_tokens(beyond)
            raise UserError(
                f"{where} has the token {token!r}, number {beyond} of the tokenizer, but the model has embeddings of "
                f"{self.vocabulary}: the tokenizer was enlarged and the model was not; save both after "
                "model.resize_token_embeddings(len(tokenizer)), or use the tokenizer that came with the model"
            )

    def encode(self, table: pd.DataFrame, cached: bool = False) -> tuple[list[Encoded], Truncation]:
        """Tokenise each row, in the table's order.

        Args:
            table: columns task, text and the prompt's placeholders; the index is the documents' rows.
            cached: keep the tokens in the cache folder, for the next start.

        Returns:
            Each document, or each of its pieces, in order; and what was cut off.

        Raises:
            UserError: a document has a token for which the model has no embedding, or is a chat that the template cannot
                write; or no text fits into a piece.
        """
        identity = fingerprint(self.tokenizer) if cached else None
        if identity is None:
            tokens = self._encode(table)
        else:
            how = [getattr(self, name) for name in self.__dataclass_fields__ if name not in ("tokenizer", "vocabulary")]
            template = self.tokenizer.chat_template if self.chat or self.chat_template else None
            cells = [table[name] for name in ("task", "text", *placeholders(table))]
            key = digest(["tokens", 5, identity, how, template, len(table)], chain(*cells))
            tokens = cached_table("tokens", key, lambda: self._encode(table))
        encoded = to_pieces(tokens)
        highest = pc.max(tokens["ids"].combine_chunks().values).as_py() if encoded else None
        if highest is not None and highest >= self.vocabulary:
            for piece in encoded:
                self.require_embeddings(piece.ids, f"the document in row {table.index[piece.document]}")
        lost = tokens.select(["document", "n_lost", "n_lost_prompt"]).to_pandas().groupby("document").sum()
        counts = zip((lost > 0).sum(), lost.sum(), strict=True)
        return encoded, Truncation(*(int(count) for pair in counts for count in pair))

    @property
    def end_of_turn(self) -> int | None:
        """The token that ends a chat's answer; None if documents are not chats, or their template has none."""
        if not (self.chat or self.chat_template):
            return None
        return end_of_turn(self.tokenizer, lambda text: self._ids([text])[0])

    def encode_under(self, table: pd.DataFrame, names: Sequence[str]) -> list[Encoded]:
        """Tokenise rows of several tasks, each with its own task's name in the prompt, so that all score the same tokens.

        Args:
            table: as for `encode`.
            names: all tasks that are compared; a text is cut to fit after the longest of their prompts, which must
                leave room.
        """
        longest = max(len(self.before(name)) for name in names)
        if self.max_tokens - longest < 2:
            raise UserError(f"data.max_tokens={self.max_tokens}: the longest prompt leaves no room for a text")
        return to_pieces(self._encode(table, longest))

    def ask(self, table: pd.DataFrame) -> list[tuple[Any, str]]:
        """Split each row into a prompt for `start` and the response as written; in a chat, the last answer."""
        if self.chat:
            asked = []
            for chat in map(json.loads, table["text"]):
                last = max((i for i, m in enumerate(chat) if m["role"] == "assistant"), default=len(chat))
                asked.append((chat[:last], chat[last]["content"] if last < len(chat) else ""))
            return asked
        prompts = [{name[1:-1]: cell for name, cell in cells.items()} for cells in prompt_cells(table)]
        return list(zip(prompts, table["text"], strict=True))

    def example(self, document: pd.DataFrame) -> str:
        """Return a short prompt for `start` from a table of one document."""
        (prompt, _), (text,) = self.ask(document)[0], document["text"]
        if len(self.columns) > 1:
            return show_prompt({name: cell[:MAX_EXAMPLE_CHARS] for name, cell in prompt.items()})
        return " ".join((show_prompt(prompt) if self.answers else text).split()[:3])[:MAX_EXAMPLE_CHARS]

    def start(self, task: str | None, prompt: Any, room: int | None = None) -> list[int]:
        """Encode the beginning of a text, for a model to continue.

        Args:
            task: the name for `{task}`; None only if the prompt does not contain it.
            prompt: the text's beginning; if data.prompt takes columns, their cells by column, or the cell of its only
                column; in a chat, the messages, or the text of the user's first. Several cells, or messages, may be JSON.
            room: number of tokens to which a prompt with columns, or a question, is shortened; None for max_tokens.

        Raises:
            UserError: the prompt lacks a column of data.prompt, or the chat template cannot write it.
        """
        room = self.max_tokens if room is None else room
        if isinstance(prompt, str) and (self.chat or len(self.columns) > 1):
            prompt = _from_json(prompt, self.chat)
        if self.chat:
            return self._question([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, room)
        if not self.answers:
            if not isinstance(prompt, str):
                raise UserError(f"this run's documents have no prompt: give a text to continue, not {prompt!r}")
            return self.before(task) + self._ids([self.template.partition("{text}")[0] + prompt])[0]
        cells = {self.columns[0]: prompt} if isinstance(prompt, str) and len(self.columns) == 1 else prompt
        if self.columns and (not isinstance(cells, Mapping) or set(self.columns) - set(cells)):
            raise UserError(
                f"this run's data.prompt takes {', '.join(self.columns)}: give a JSON object with these keys, "
                f"{json.dumps(dict.fromkeys(self.columns, '…'), ensure_ascii=False)}"
            )
        values = {TASK: task or ""} | {f"{{{name}}}": to_text(cells[name]) for name in self.columns}
        question = fill(self.prompt or "", values)
        if self.chat_template:
            begun = self._question([{"role": "user", "content": question}], room)
            return begun if self.columns or not prompt else begun + self._ids([prompt])[0]
        before, after = self.beginning, self._ids([self.template.partition("{text}")[0]])[0]
        return before + self.cutter.shorten(self._ids([question])[0], room - len(before) - len(after)) + after

    def _question(self, messages: list[Message], room: int) -> list[int]:
        """Encode a chat up to where its answer begins, shortened as in training, at the message before the first answer.

        If that is not enough, the beginning of what follows it is dropped.
        """
        asked = begin_answer(self.tokenizer, messages)
        ids = self._ids([asked])[0]
        first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
        if len(ids) <= room or not first:
            return ids
        text = render_within(self.tokenizer, messages[:first], asked)
        place = find_question(ids, text, messages[first - 1], lambda part: self._ids([part])[0])
        begun = ids[: place.start] + self.cutter.shorten(ids[place], room - len(ids) + place.stop - place.start)
        rest = ids[place.stop :]
        return begun + rest[max(0, len(begun) + len(rest) - room) :]

    def _encode(self, table: pd.DataFrame, longest: int | None = None) -> pa.Table:
        """Tokenise into a table of TOKENS, part by part.

        Args:
            longest: see `Cutter.cut`. If prompts have columns, or are a chat's questions, all tasks have the same.
        """
        parts = []
        # Neither number ever decreases, so a new part begins where their sum increases.
        number = table["text"].str.len().to_numpy(np.int64).cumsum() // MAX_PART_CHARS
        number += np.arange(len(table)) // MAX_PART_DOCUMENTS
        cuts = [0, *(np.flatnonzero(np.diff(number)) + 1), len(table)] if len(table) else []
        for start, stop in progress([*pairwise(cuts)], "tokenising"):
            rows = []
            for document, wholes in enumerate(self._parts(table.iloc[start:stop]), start=int(start)):
                for whole in wholes:
                    same = longest if longest is None or not self.answers else len(whole.before)
                    pieces, *lost = self.cutter.cut(whole, same)
                    # A document's first piece has the counts of what it lost.
                    rows += [(document, *piece, *(lost if i == 0 else (0, 0))) for i, piece in enumerate(pieces)]
            parts.append(pa.table([*map(list, zip(*rows, strict=True))], schema=TOKENS))
        return pa.concat_tables(parts) if parts else TOKENS.empty_table()

    def _parts(self, table: pd.DataFrame) -> Iterator[list[Parts]]:
        """Tokenise rows without cutting them; a chat may become several texts, see `encode_chat`."""
        end = [self.tokenizer.eos_token_id] if self.append_eos else []
        blank = table["text"].str.strip() == ""  # nothing of it is scored, not even its end
        if self.chat or self.chat_template:
            for row, messages, is_blank in zip(table.index, self._chats(table), blank, strict=True):
                if is_blank:
                    yield [Parts([], [], [0], np.zeros(1, dtype=bool), [])]
                    continue
                try:
                    written = encode_chat(self.tokenizer, messages, lambda text: self._ids([text])[0])
                except UserError as error:
                    raise UserError(f"the document in row {row}: {error}") from error
                wholes = []
                for turns in written:
                    begin, stop = turns.question.start, turns.question.stop
                    scored = np.append(turns.scored[stop:], np.full(len(end), True))
                    wholes.append(Parts(turns.ids[:begin], turns.ids[begin:stop], turns.ids[stop:] + end, scored, []))
                yield wholes
            return
        before = {task: self.before(task) for task in table["task"].unique()}
        prompts = self._ids(self._questions(table)) if self.columns else [[]] * len(table)
        texts = self._ids([self.template.replace("{text}", text) for text in table["text"]])
        for task, prompt, text, is_blank in zip(table["task"], prompts, texts, blank, strict=True):
            rest = text + end
            yield [Parts(before[task], prompt, rest, np.full(len(rest), not is_blank), before[task])]

    def _questions(self, table: pd.DataFrame) -> list[str]:
        """Fill in the prompt for each row."""
        rows = zip(table["task"], prompt_cells(table), strict=True)
        return [fill(self.prompt or "", {TASK: task} | cells) for task, cells in rows]

    def _chats(self, table: pd.DataFrame) -> Iterator[list[Message]]:
        """Yield each row's messages."""
        if self.chat:
            yield from (json.loads(text) if text.strip() else [] for text in table["text"])
            return
        for question, text in zip(self._questions(table), table["text"], strict=True):
            answer = self.template.replace("{text}", text)
            yield [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of `tokenizer(texts, add_special_tokens=False)`.

        Raises:
            UserError: a text cannot be encoded in UTF-8.
        """
        if not texts:
            return []
        if self.tokenizer.is_fast:  # without masks and positions in the text, which are not needed
            backend = self.tokenizer.backend_tokenizer
            backend.no_truncation()
            backend.no_padding()
            try:
                return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
            except TypeError as error:
                raise UserError("a text holds half a surrogate pair, such as an emoji cut in two; remove it") from error
        # verbose=False: texts that are too long for the model are cut later, so the warning would mislead.
        return self.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids


def _from_json(text: str, chat: bool) -> Any:
    """Parse a prompt that is JSON; other text is unchanged, and for a chat so is JSON that is not a list of messages."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    messages = isinstance(found, list) and all(isinstance(one, dict) for one in found)
    return found if messages or not chat else text


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Hash everything that decides a tokenizer's ids; None for a tokenizer in Python, whose code decides too."""
    if not tokenizer.is_fast:
        return None
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.split_special_tokens]
    return digest([tokenizers.__version__, transformers.__version__, special], [tokenizer.backend_tokenizer.to_str()])
