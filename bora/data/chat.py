"""Write chats with the model's own chat template, and score what the assistant says."""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from bora.errors import UserError, first_line

Message = dict[str, Any]
Ids = list[int]
ANSWER = "☃snow"  # a text that no template writes
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # with it a template itself marks what the assistant says
NOW = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
TODAY = datetime(2024, 7, 26)  # for templates that write the date; the default in Llama 3.2's

log = logging.getLogger(__name__)


class Turns(NamedTuple):
    """A chat's tokens.

    Attributes:
        ids: the token ids of the whole chat.
        scored: [len(ids)], whether the assistant says the token.
        question: where in `ids` the message before the first answer is, without what the template puts around it; if
            that answer is not scored, from there to the end of the message before the first one that is.
    """

    ids: Ids
    scored: np.ndarray
    question: slice


def to_messages(value: Any) -> str:
    """Convert a cell, a list of messages or JSON of one, to a chat as JSON text; a missing value becomes ''.

    Raises:
        ValueError: the cell is neither, or a message lacks its role or content.
    """
    if isinstance(value, str):
        if not value.strip():
            return ""
        value = json.loads(value)
    elif pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    else:
        value = _without_nulls(value)
    if not isinstance(value, list):
        raise ValueError('give a list of messages, [{"role": "user", "content": "…"}, …]')
    return json.dumps([*map(_to_message, value)], ensure_ascii=False, default=str) if value else ""


def _without_nulls(value: Any) -> Any:
    """Convert NumPy's values to Python's, and drop null fields at any depth, since Arrow gives every object all keys."""
    if isinstance(value, Mapping):
        return {str(key): _without_nulls(part) for key, part in value.items() if part is not None}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_without_nulls(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def _to_message(value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise ValueError(f'a message is an object with "role" and "content", not a {type(value).__name__}')
    message = {str(key): part for key, part in value.items() if part is not None}
    if "tool_calls" in message:
        message.setdefault("content", "")
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise ValueError(
                f'a message has no text in its "{key}"; join its parts, and leave images out'
                if key in value
                else f'a message has no "{key}", but {", ".join(map(repr, message)) or "nothing"}'
            )
    return message


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answer: bool = False) -> str:
    """Write messages with the tokenizer's chat template; a template that writes the date gets TODAY.

    Args:
        answer: end where the assistant's answer begins.

    Raises:
        UserError: there is no template, or it cannot write these messages.
    """
    try:
        how: dict[str, Any] = {
            "tokenize": False,
            "add_generation_prompt": answer,
            "chat_template": _on_today(tokenizer.get_chat_template()),
        }
        return str(tokenizer.apply_chat_template(list(messages), **how))
    except (TemplateError, ValueError, TypeError) as error:
        raise UserError(f"the tokenizer's chat template cannot write these messages: {first_line(error)}") from error


@cache
def _on_today(template: str) -> str:
    """Replace a template's calls for the date with TODAY."""
    return NOW.sub(lambda call: json.dumps(TODAY.strftime(call[2])), template)


def begin_answer(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """Write messages up to where an answer begins, exactly as in the chats with an answer that are trained on.

    Some templates begin an answer differently if a model is to generate it, for example with <think>. Others write the
    messages differently: Mistral's puts the system's message before the user's last one only if no answer follows.
    """
    asked = render(tokenizer, messages, answer=True)
    if messages and messages[-1]["role"] == "assistant":
        return asked
    answered = render(tokenizer, [*messages, {"role": "assistant", "content": ANSWER}])
    shared = asked[: _shared(asked, answered)]
    if shared.rstrip() == asked.rstrip():
        return shared
    if answered.startswith(render(tokenizer, messages)):
        _warn(
            f"the chat template starts an answer to generate with {asked[len(shared) :]!r}, but not the answers that are "
            "trained on; it is left out when this run's models answer"
        )
        return shared
    _warn(
        "the chat template writes a question differently once its answer follows (it may drop the system's message); "
        "training and generation both use the form with an answer"
    )
    return answered[: answered.rfind(ANSWER)].rstrip(" ")


def render_within(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str) -> str:
    """Write messages as in `text`, a chat that begins with them and either has an answer or asks for one."""
    alone = render(tokenizer, messages)
    return alone if text.startswith(alone) else begin_answer(tokenizer, messages)


@cache
def _warn(message: str) -> None:
    """Log each warning once."""
    log.warning("%s", message)


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], encode: Callable[[str], Ids]
) -> list[Turns]:
    """Tokenise a chat and find what the assistant says.

    If the template marks that with {% generation %}, the mask comes from transformers. Otherwise an answer is what it
    adds to the messages before it, written up to where the template has the assistant begin.

    Args:
        encode: returns a text's tokens, without the tokenizer's own around them.

    Returns:
        One text; or, if the template writes an answer differently once more messages follow (Qwen3's leaves out its
        thinking), a text for each answer, which ends with it: the chat as the model sees it when it has to answer.

    Raises:
        UserError: see `render`.
    """
    text = render(tokenizer, messages)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    template = _on_today(tokenizer.get_chat_template())
    if GENERATION.search(template):
        for i in answers:
            _check_written(tokenizer, messages[: i + 1], text)
        how: dict[str, Any] = {"return_dict": True, "return_assistant_tokens_mask": True, "chat_template": template}
        found: Any = tokenizer.apply_chat_template(list(messages), **how)
        ids, scored = list(found["input_ids"]), np.array(found["assistant_masks"], dtype=bool)
        return [Turns(ids, scored, _find_asked(tokenizer, messages, answers[:1], text, ids, scored, encode))]
    spans = [_find_answer(tokenizer, messages[: i + 1]) for i in answers]
    if all(text.startswith(until[:end]) for _, until, end in spans):
        texts = [(text, answers, spans)]
    else:
        texts = [(span[1], [i], [span]) for i, span in zip(answers, spans, strict=True)]
    turns = []
    for text, own, parts in texts:
        ids = encode(text)
        scored = np.zeros(len(ids), dtype=bool)
        for before, until, _ in parts:
            scored[_shared(ids, encode(before)) : _shared(ids, encode(until))] = True
        turns.append(Turns(ids, scored, _find_asked(tokenizer, messages, own[:1], text, ids, scored, encode)))
    return turns


def _find_answer(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[str, str, int]:
    """Return a chat up to where its last message, an answer, begins; the whole chat; and where in it the answer ends.

    What the template puts after the answer may depend on what follows: Phi's marks the end of a chat, not of each turn.
    """
    until, said = render(tokenizer, messages), messages[-1]["content"].strip()
    _check_written(tokenizer, messages, until)
    # If a chat begins with an answer, what the template puts before it cannot be written separately.
    at = until.rfind(said)
    before = render(tokenizer, messages[:-1], answer=True) if len(messages) > 1 else until[:at]
    if not until.startswith(before):
        before = begin_answer(tokenizer, messages[:-1])
    return before, until, at + len(said)


def _check_written(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], text: str) -> None:
    """Warn if the template changes words of a chat's last message; refuse a template that does not write them at all."""
    if messages[-1]["content"].strip() in text:
        return
    if render(tokenizer, [*messages[:-1], messages[-1] | {"content": ANSWER}]) == render(tokenizer, messages):
        raise UserError("the tokenizer's chat template does not write what the assistant says if it is a text")
    _warn("the chat template leaves out or changes parts of what the assistant says, so they are not trained on")


def _find_asked(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    answers: Sequence[int],
    text: str,
    ids: Ids,
    scored: np.ndarray,
    encode: Callable[[str], Ids],
) -> slice:
    """Find what a text that is too long loses first: from the message before the chat's first answer to the message
    before the first answer that is scored, which has index `answers[0]`, if there is one.
    """
    start = int(scored.argmax()) if scored.any() else len(ids)
    if not answers:
        return slice(0, start)
    if answers[0] == 0:
        return slice(start, start)

    def before(answer: int) -> slice:
        asked = render_within(tokenizer, messages[:answer], text)
        return find_question(ids, asked, messages[answer - 1], encode)

    end = before(answers[0])
    first = next(i for i, message in enumerate(messages) if message["role"] == "assistant") or answers[0]
    begin = end if first == answers[0] else before(first)
    return slice(begin.start, min(end.stop, start))


def end_of_turn(tokenizer: PreTrainedTokenizerBase, encode: Callable[[str], Ids]) -> int | None:
    """Find the token with which the template ends an answer; None if it has no special one."""
    turns: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ANSWER}]
    try:
        text = render(tokenizer, turns)
    except UserError:
        return None
    behind = encode(text[text.rfind(ANSWER) + len(ANSWER) :])
    added = tokenizer.added_tokens_decoder  # some are white space, which an answer may contain
    return next((token for token in behind if token in added and added[token].content.strip()), None)


def find_question(ids: Ids, text: str, message: Message, encode: Callable[[str], Ids]) -> slice:
    """Find where a message's own words are in a chat's tokens; return the whole chat if the template changes them.

    Args:
        ids: the tokens of the chat, or of one that continues it.
        text: the chat, which ends with the message.
    """
    content = message["content"].strip()
    at = text.rfind(content)
    if not content or at < 0:
        return slice(0, _shared(ids, encode(text)))
    return slice(*(_shared(ids, encode(text[:stop])) for stop in (at, at + len(content))))


def _shared(ids: Sequence[Any], others: Sequence[Any]) -> int:
    """Return how many tokens, or characters, two texts share at the beginning."""
    return next((i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), min(len(ids), len(others)))
