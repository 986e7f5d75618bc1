"""Chats: answers are marked by the template or, if it does not mark them, are what they add to the chat before."""

import copy
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from bora.data.chat import encode_chat, to_messages
from bora.data.columns import Columns
from bora.data.read import read_documents
from bora.data.table import read
from bora.data.tokens import Tokens
from bora.errors import UserError
from bora.model.pretrained import load_packaged
from tests.data.inputs import data_group

HEAD = "{% for m in messages %}{{ '<' + m['role'] + '>\\n' }}"
TAIL = "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>\\n' }}{% endif %}"
PLAIN = HEAD + "{{ m['content'] | trim + '</s>\\n' }}" + TAIL
MARKED = (
    HEAD + "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '</s>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m['content'] + '</s>\\n' }}{% endif %}" + TAIL
)


def chat(*contents: str, first: str = "user") -> list[dict]:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


CHATS = [
    [{"role": "system", "content": "Be brief."}, *chat("What is x?", "It is 1.", "And y?", "æøå 水")],
    chat("Hello", "\n\n def f(x):\n    return x "),
    chat("no answer"),
    chat("an empty answer", ""),
]


@pytest.fixture
def tokenizer():
    return copy.deepcopy(load_packaged("opt_mini").tokenizer)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def encode(tokenizer, messages):
    (turns,) = encode_chat(tokenizer, messages, lambda text: ids_of(tokenizer, text))
    return turns


@pytest.mark.parametrize("messages", CHATS)
def test_if_the_template_marks_answers_ids_and_mask_equal_transformers_own(tokenizer, messages):
    tokenizer.chat_template = MARKED
    theirs = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ours = encode(tokenizer, messages)
    assert ours.ids == theirs["input_ids"]
    assert ours.scored.astype(int).tolist() == theirs["assistant_masks"]


@pytest.mark.parametrize("said", ["a", "t", "Hi there. "])
def test_an_answer_at_the_beginning_has_no_question_and_its_header_is_not_scored(tokenizer, said):
    tokenizer.chat_template = PLAIN
    ours = encode(tokenizer, chat(said, "Thanks", "Bye", first="assistant"))
    assert tokenizer.decode(np.array(ours.ids)[ours.scored]) == said.strip() + "</s>\nBye</s>\n"
    ours = encode(tokenizer, chat(said, first="assistant"))
    assert ours.question.start == ours.question.stop


def test_shortening_a_long_chat_to_be_answered_keeps_its_last_message_whole(tokenizer):
    tokenizer.chat_template = PLAIN
    tokens = Tokens(tokenizer, len(tokenizer), 40, chat=True)
    messages = chat("word " * 50, "yes " * 60, "Which law is it then?")
    start = tokens.start(None, messages)
    assert len(start) == 40
    text = tokenizer.decode(start)
    assert text.startswith("<user>\n")
    assert text.endswith("<user>\nWhich law is it then?</s>\n<assistant>\n")
    assert tokens.start(None, json.dumps(messages, indent=1)) == start
    assert len(tokens.start(None, messages, room=30)) == 30


@pytest.mark.parametrize("messages", CHATS)
def test_if_the_template_marks_no_answers_an_answer_is_what_it_adds_to_the_chat_before(tokenizer, messages):
    tokenizer.chat_template = PLAIN
    ours = encode(tokenizer, messages)
    assert ours.ids == tokenizer.apply_chat_template(messages, return_dict=False)
    mask = np.zeros(len(ours.ids), dtype=bool)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, return_dict=False)
            until = tokenizer.apply_chat_template(messages[: i + 1], return_dict=False)
            mask[len(before) : len(until)] = True
    assert ours.scored.tolist() == mask.tolist()
    said = "".join(m["content"].strip() + "</s>\n" for m in messages if m["role"] == "assistant")
    assert tokenizer.decode(np.array(ours.ids)[ours.scored]) == said


def test_a_prompt_for_an_answer_begins_as_in_training(tokenizer, caplog):
    tokenizer.chat_template = PLAIN.replace("'<assistant>\\n' }}", "'<assistant>\\n<think>\\n' }}")
    tokens = Tokens(tokenizer, len(tokenizer), 50, chat=True)
    assert tokenizer.decode(tokens.start(None, "Hello")) == "<user>\nHello</s>\n<assistant>\n"
    assert "starts an answer that a model is to give with '<think>\\n'" in caplog.text
    mine = encode(tokenizer, chat("Hello", "Hi"))
    assert tokenizer.decode(np.array(mine.ids)[mine.scored]) == "Hi</s>\n"


def test_a_question_that_the_template_writes_differently_without_its_answer_is_not_scored(tokenizer, caplog):
    tokenizer.chat_template = (  # as Mistral's: the system's message comes before the last one, if that is the user's
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
        "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n\\n' }}{% endif %}"
        "{{ m['content'] + '[/INST]' }}{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + '</s>' }}{% endif %}"
        "{% endfor %}"
    )
    messages = [{"role": "system", "content": "Be brief."}, *chat("Which law is it?", "This one")]
    mine = encode(tokenizer, messages)
    assert tokenizer.decode(mine.ids) == "[INST] Which law is it?[/INST] This one</s>"
    assert tokenizer.decode(np.array(mine.ids)[mine.scored]) == " This one</s>"
    assert "writes a question differently once its answer follows" in caplog.text
    tokens = Tokens(tokenizer, len(tokenizer), 50, chat=True)
    assert tokenizer.decode(tokens.start(None, messages[:2])) == "[INST] Which law is it?[/INST]"
    long = [messages[0], *chat("word " * 50 + "it", "This one")]  # the question is shortened, the answer stays whole
    (cut,), lost = tokens.encode(pd.DataFrame({"task": ["a"], "text": [json.dumps(long)]}))
    assert tokenizer.decode(cut.ids[cut.scored]) == " This one</s>"
    assert (len(cut.ids), lost.tokens, lost.prompts) == (50, 0, 1)
    assert tokenizer.decode(tokens.start(None, long[:2])).endswith("word it[/INST]")


def test_a_template_that_drops_parts_of_an_answer_is_warned_of(tokenizer, caplog):
    tokenizer.chat_template = PLAIN.replace("m['content']", "m['content'].split('</think>')[-1]")
    mine = encode(tokenizer, chat("2 + 2", "<think>two and two</think>4"))
    assert tokenizer.decode(np.array(mine.ids)[mine.scored]) == "4</s>\n"
    assert "leaves out or changes parts of what the assistant says" in caplog.text


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_tokens_do_not_depend_on_the_day(tokenizer, template):
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + template
    assert tokenizer.decode(encode(tokenizer, chat("a", "b")).ids).startswith("26 Jul 2024\n<user>")


def test_a_template_may_write_an_end_only_after_the_last_message(tokenizer):
    tokenizer.chat_template = PLAIN.replace("{% endif %}", "{% else %}{{ '[end]' }}{% endif %}")  # as Phi-3's
    ours = encode(tokenizer, chat("a", "One", "b", "Two"))
    assert tokenizer.decode(np.array(ours.ids)[ours.scored]) == "One</s>\nTwo</s>\n[end]"


def test_a_template_for_messages_in_parts_is_refused(tokenizer):
    parts = "{% for part in m['content'] %}{{ part.text }}{% endfor %}"  # as in models that see images
    tokenizer.chat_template = HEAD + parts + TAIL
    with pytest.raises(UserError, match="does not write what the assistant says"):
        encode(tokenizer, chat("a question", "an answer"))


THINKING = (
    HEAD + "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] + '</s>\\n' }}" + TAIL
)  # as Qwen3's


def test_answers_that_later_messages_change_become_a_text_each(tokenizer):
    tokenizer.chat_template = THINKING
    messages = [{"role": "system", "content": "S"}, *chat("why " * 20, "One", "b", "Two", "c")]
    texts = encode_chat(tokenizer, messages, lambda text: ids_of(tokenizer, text))
    start, thought = f"<system>\nS</s>\n<user>\n{'why ' * 20}</s>\n<assistant>\n", "<think>\n\n</think>\n\n"
    then = start + "One</s>\n<user>\nb</s>\n<assistant>\n"
    for (ids, scored, asked), before, answer in zip(texts, (start, then), ("One</s>\n", "Two</s>\n"), strict=True):
        assert ids == ids_of(tokenizer, before + thought + answer)
        assert np.array(ids)[scored].tolist() == ids_of(tokenizer, thought + answer)
        assert tokenizer.decode(ids[: asked.start]) == "<system>\nS</s>\n<user>\n"
        assert tokenizer.decode(ids[asked.stop :]).endswith("</s>\n<assistant>\n" + thought + answer)
    (ids, _, asked), room = texts[1], len(texts[1].ids) - 10
    table = pd.DataFrame({"task": ["t"], "text": [json.dumps(messages)]})
    (first, second), lost = Tokens(tokenizer, len(tokenizer), room, chat=True).encode(table)
    assert (first.document, second.document, lost.prompts, lost.documents) == (0, 0, 1, 0)
    assert first.ids.tolist() == texts[0].ids
    assert second.ids.tolist() == ids[: asked.start] + ids[asked.start + 10 :]


def test_an_error_of_the_template_is_reported_with_the_row(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    table = pd.DataFrame({"task": ["a"], "text": [json.dumps(chat("a", "b"))]}, index=[7])
    with pytest.raises(
        UserError, match="row 7: the tokenizer's chat template cannot write these messages: roles must alternate"
    ):
        Tokens(tokenizer, len(tokenizer), 50, chat=True).encode(table)


def test_a_long_question_is_shortened_and_the_templates_words_around_it_stay(tokenizer):
    tokenizer.chat_template = PLAIN
    messages = [{"role": "system", "content": "Be brief."}, *chat("word " * 50, "the answer")]
    table = pd.DataFrame({"task": ["a"], "text": [json.dumps(messages)]})
    whole = encode(tokenizer, messages)
    (cut,), lost = Tokens(tokenizer, len(tokenizer), 40, chat=True).encode(table)
    assert len(cut.ids) == 40
    assert cut.ids[cut.scored].tolist() == np.array(whole.ids)[whole.scored].tolist()
    text = tokenizer.decode(cut.ids)
    assert text.startswith("<system>\nBe brief.</s>\n<user>\n")
    assert text.endswith("word</s>\n<assistant>\nthe answer</s>\n")
    assert (lost.tokens, lost.prompts, lost.prompt_tokens) == (0, 1, len(whole.ids) - 40)


def test_with_a_chat_template_a_prompt_and_response_become_a_question_and_answer(tokenizer):
    tokenizer.chat_template = PLAIN
    table = pd.DataFrame({"task": ["x"], "text": ["an answer"], "{q}": ["what"]})
    tokens = Tokens(tokenizer, len(tokenizer), 50, "{task}: {q}?", chat_template=True)
    (document,), _ = tokens.encode(table)
    expected = encode(tokenizer, chat("x: what?", "an answer"))
    assert document.ids.tolist() == expected.ids
    assert document.scored.tolist() == expected.scored.tolist()
    assert tokens.start("x", "what") == document.ids[~document.scored].tolist()
    same = Tokens(tokenizer, len(tokenizer), 50, "Speak as {task}.", chat_template=True)
    (document,), _ = same.encode(table)
    ((ask, _),) = same.ask(table[["task", "text"]])
    assert same.start("x", ask) == document.ids[~document.scored].tolist()
    assert same.start("x", "an") == document.ids[~document.scored].tolist() + ids_of(tokenizer, "an")


def test_the_end_of_an_answer_is_the_first_special_token_after_it(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.add_tokens(["\n"])
    for template, end in ((PLAIN, "</s>"), (PLAIN.replace("</s>", "\n<|im_end|>"), "<|im_end|>"), ("", None)):
        tokenizer.chat_template = template
        tokens = Tokens(tokenizer, len(tokenizer), 32, chat=True)
        assert tokens.end_of_turn == (None if end is None else tokenizer.convert_tokens_to_ids(end))
    assert Tokens(tokenizer, len(tokenizer), 32).end_of_turn is None  # for documents that are not chats


MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


def test_chats_are_read_from_json_lines_parquet_csv_and_frames(tmp_path):
    calls = [
        {"x": {"n": 3, "p": 1.5}},
        {"y": ["z"]},
    ]  # in Parquet each has the keys of both, with null for a missing one
    called = [{"role": "assistant", "content": "", "tool_calls": calls}]
    rows = [{"task": "a", "chat": MESSAGES}, {"task": "b", "chat": MESSAGES[:1]}, {"task": "b", "chat": called}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    pd.DataFrame([{**row, "chat": json.dumps(row["chat"])} for row in rows]).to_csv(tmp_path / "t.csv", index=False)
    for name in ("t.jsonl", "t.parquet", "t.csv"):
        found = read(tmp_path / name, Columns(messages="chat"))
        assert [json.loads(text) for text in found["text"]] == [row["chat"] for row in rows]
        assert found["task"].tolist() == ["a", "b", "b"]


def test_chats_are_read_from_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"task": "a", "chat": MESSAGES}]).save_to_disk(tmp_path / "d")
    found = read_documents(data_group("datasets", path=str(tmp_path / "d"), messages="chat"))
    assert json.loads(found["text"][0]) == MESSAGES


def test_other_fields_of_a_message_are_kept_as_json():
    call = {"role": "assistant", "content": None, "tool_calls": np.array([{"n": np.float32(2)}]), "at": pd.Timestamp(0)}
    said = [{"role": "assistant", "content": "", "tool_calls": [{"x": None}]}]
    assert json.loads(to_messages(json.dumps(said))) == said  # a null that was written stays null
    (kept,) = json.loads(to_messages([call]))
    assert kept == {"role": "assistant", "content": "", "tool_calls": [{"n": 2.0}], "at": "1970-01-01 00:00:00"}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"role": "user"}, "give a list of messages"),
        (["hi"], "a message is an object"),
        ([{"role": "user", "content": None}], """a message has no "content", but 'role'"""),
        ([{"from": "human", "value": "Hi"}], """a message has no "role", but 'from', 'value'"""),
        ("not json", "Expecting value"),
        (3, "give a list of messages"),
    ],
)
def test_a_value_that_is_not_a_chat_is_refused(value, why):
    with pytest.raises(ValueError, match=why):
        to_messages(value)
