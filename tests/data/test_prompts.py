"""Prompts with columns, and whole documents in pieces: which tokens a document has, and which of them are scored."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bora.config.compose import compose_config
from bora.data.corpus import build_corpus
from bora.data.module import TaskDataModule
from bora.data.prompts import fill, prompt_columns
from bora.data.tokens import Tokens
from bora.errors import UserError
from bora.model.pretrained import load_packaged
from tests.conftest import hierarchical, random_factors

TOKENIZER = load_packaged("opt_mini").tokenizer
PROMPT = "{task} says of {article}: {{"
ROWS = [("x", "a short answer", "an article"), ("{article}", "{task}", "of {task} and {text}")]
ROWS += [("x", "an answer", "long " * 60)]
PAIRS = pd.DataFrame(ROWS, columns=["task", "text", "{article}"], index=[3, 5, 8])


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False).input_ids


def tokens(**options) -> Tokens:
    return Tokens(TOKENIZER, len(TOKENIZER), **{"max_tokens": 100, **options})


def test_placeholders_are_filled_once_and_double_braces_become_single():
    assert prompt_columns(PROMPT) == ("article",)
    assert prompt_columns("{b} {a} {b} {task}") == ("b", "a")
    assert fill(PROMPT, {"{task}": "{article}", "{article}": "{task}"}) == "{article} says of {task}: {"
    assert not tokens(prompt="{{task}} {q}").names_task
    assert fill('}} {{"{a}": 1}}', {"{a}": "x"}) == '} {"x": 1}'


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_prompt_is_shortened_on_the_given_side_and_the_answer_stays_whole(side):
    cut, lost = tokens(prompt=PROMPT, append_eos=True, max_tokens=20, prompt_truncation=side).encode(PAIRS[2:])
    prompt = ids_of(f"x says of {PAIRS['{article}'][8]}: {{")
    answer = [*ids_of("an answer"), TOKENIZER.eos_token_id]
    room = 20 - 1 - len(answer)
    kept = prompt[-room:] if side == "left" else prompt[:room]
    assert cut[0].ids.tolist() == [TOKENIZER.bos_token_id, *kept, *answer]
    assert (lost.documents, lost.tokens, lost.prompts) == (0, 0, 1)
    assert lost.prompt_tokens == len(prompt) - room


def test_an_answer_that_does_not_fit_is_cut_and_counted():
    table = PAIRS.assign(text=" ".join(["word"] * 40))
    cut, lost = tokens(prompt=PROMPT, max_tokens=12).encode(table)
    answer = ids_of(table["text"][3])
    for document, article, task in zip(cut, table["{article}"], table["task"], strict=True):
        prompt = ids_of(f"{task} says of {article}: {{")
        assert document.ids.tolist() == [TOKENIZER.bos_token_id, *prompt[-5:], *answer[:6]]
    assert (lost.documents, lost.tokens, lost.prompts) == (3, 3 * (len(answer) - 6), 3)


@given(
    words=st.integers(0, 40),
    max_tokens=st.integers(8, 30),
    overlap=st.integers(0, 3),
    bos=st.booleans(),
    prompt=st.sampled_from([None, "Q:", "{article} so:"]),
)
def test_pieces_score_every_token_once_after_the_tokens_before_it(words, max_tokens, overlap, bos, prompt):
    text = " ".join(f"w{i}" for i in range(words))
    table = pd.DataFrame({"task": ["a"], "text": [text], "{article}": ["one two three four five six"]})
    how = {"prompt": prompt, "prepend_bos": bos, "append_eos": True}
    (whole,), _ = tokens(**how, max_tokens=10_000).encode(table)
    pieces, lost = tokens(**how, max_tokens=max_tokens, long="chunk", overlap=overlap).encode(table)
    assert all(len(piece.ids) <= max_tokens for piece in pieces)
    assert {piece.document for piece in pieces} == {0}
    assert lost.tokens == 0
    answer = whole.ids[whole.scored].tolist()
    # If nothing comes before the text, nothing predicts its first token.
    first = 1 if whole.scored[0] else 0
    scored = [id for piece in pieces for id in piece.ids[1:][piece.scored[1:]].tolist()]
    assert scored == answer[first:]
    repeated = [] if prompt == "{article} so:" or prompt is None else ids_of(prompt)
    repeated = [TOKENIZER.bos_token_id] * bos + repeated
    done = len(pieces[0].ids[pieces[0].scored])
    for piece in pieces[1:]:
        context = piece.ids[~piece.scored].tolist()
        assert context[: len(repeated)] == repeated
        behind = context[len(repeated) :]
        assert len(behind) == max(overlap, not repeated)
        stood = (pieces[0].ids[~pieces[0].scored].tolist() + answer)[: len(whole.ids)]
        n = (~pieces[0].scored).sum() + done
        assert behind == stood[n - len(behind) : n]
        done += int(piece.scored.sum())


@pytest.mark.parametrize("settings", [{"prompt": "{q}?"}, {"prompt": "{q}?", "chat_template": True}, {"chat": True}])
def test_an_empty_text_has_no_scored_token_not_even_its_end(settings):
    chat = '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
    texts = ["", " \n", chat if "chat" in settings else "an answer"]
    table = pd.DataFrame({"task": "t", "text": texts, "{q}": "why"})
    chats = copy.deepcopy(TOKENIZER)
    chats.chat_template = "{% for m in messages %}{{ m['content'] + '</s>' }}{% endfor %}"
    how = Tokens(chats, len(chats), 40, append_eos=True, **settings)
    encoded, _ = how.encode(table)
    assert [document.n_scored > 0 for document in encoded] == [False, False, True]
    assert how.encode(table[:0])[0] == []


def long_corpus(**settings):
    """Build three tasks with documents of very different lengths."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 9, rng.integers(1, 60))) for _ in range(24)]
    rows = [(f"t{i // 8}", text) for i, text in enumerate(texts)]
    data = compose_config(["data.min_documents=3", "data.min_characters=0"])[0].data
    return build_corpus(pd.DataFrame(rows, columns=["task", "text"]), tokens(max_tokens=16, **settings), data)


def test_a_document_in_pieces_counts_once_and_is_in_one_split():
    cut, chunked = long_corpus(), long_corpus(long="chunk", overlap=2)
    assert len(chunked.documents) > len(cut.documents)
    columns = ["n_train", "n_val", "n_test"]
    assert chunked.per_task()[columns].equals(cut.per_task()[columns])
    assert chunked.documents.groupby("row")["split"].nunique().eq(1).all()
    first = chunked.documents.query("piece == 0").reset_index(drop=True)
    same = ["row", "task", "split", "text"]
    assert first[same].equals(cut.documents[same])
    assert chunked.documents.groupby("row")["piece"].agg(list).map(lambda p: p == list(range(len(p)))).all()
    assert chunked.sha256 == cut.sha256
    assert chunked.tokens_sha256() != cut.tokens_sha256()
    data = TaskDataModule(chunked, 4, 4, 0)
    assert data.task_documents == cut.per_task()["n_train"].tolist()
    assert data.n_tokens == chunked.documents.query("split == 'train'")["n_scored"].sum()
    assert "23 documents in " in chunked.describe()


def test_a_documents_share_of_the_prior_is_divided_among_its_pieces():
    """Over an epoch the prior is complete, and the likelihood the sum over the scored tokens of whole documents."""
    data = TaskDataModule(long_corpus(long="chunk", overlap=2), 4, 4, 0)
    pretrained = load_packaged("opt_mini")
    names = data.corpus.task_names
    model = hierarchical(pretrained.model, names, data.task_documents, data.n_tokens, tau=30.0, rank=2)
    random_factors(model, std=0.02)
    batches = list(data.train_dataloader())
    assert any((batch["share"] < 1).any() for batch in batches)
    with torch.no_grad():
        parts = [model.objective(batch) for batch in batches]
        prior = sum(float(p.prior) for p in parts) / len(batches)
        assert prior == pytest.approx(float(model.prior_potential()) / data.n_tokens, rel=1e-5)
        likelihood = sum(float(p.likelihood) for p in parts) / len(batches)
        alone = sum(float(p.nll.sum()) for p in parts) / data.n_tokens
        assert likelihood == pytest.approx(alone, rel=1e-5)


def test_batches_have_no_shares_if_no_document_is_in_pieces():
    assert all("share" not in batch for batch in TaskDataModule(long_corpus(), 4, 4, 0).train_dataloader())


def test_the_start_of_an_answer_equals_the_unscored_tokens_in_training():
    how = tokens(prompt=PROMPT, append_eos=True, template="{text}")
    for document, (prompt, answer), task in zip(how.encode(PAIRS)[0], how.ask(PAIRS), PAIRS["task"], strict=True):
        start = how.start(task, prompt)
        assert start == document.ids[~document.scored].tolist()[: len(start)]
        assert answer in PAIRS["text"].tolist()
    one = replace(how, prompt="Of {article}:")
    assert one.start(None, "an article") == one.start(None, {"article": "an article"})


def test_a_piece_without_room_is_refused():
    table = pd.DataFrame({"task": ["a"], "text": ["one two three four five six seven"]})
    with pytest.raises(UserError, match=r"max_tokens=6 leaves a piece no room behind the prompt and data\.overlap=3"):
        tokens(prompt="Q:", max_tokens=6, long="chunk", overlap=3).encode(table)


LONG = pd.DataFrame({"task": "", "text": ["word " * 40, "short"], "{q}": ["is it", "long " * 40]})
NAMES = ["a", "a much longer name of a task"]


@pytest.mark.parametrize("prompt", ["{task} {q}: ", "By {task}: "])
@pytest.mark.parametrize("how", [{}, {"long": "chunk"}, {"long": "chunk", "overlap": 2}])
def test_the_same_tokens_are_scored_under_every_tasks_prompt(prompt, how):
    compared = tokens(prompt=prompt, max_tokens=24, **how)
    under = [compared.encode_under(LONG.assign(task=name), NAMES) for name in NAMES]
    scored = [[(p.document, p.ids[1:][p.scored[1:]].tolist()) for p in pieces] for pieces in under]
    assert scored[0] == scored[1]
    if how:
        (whole, _), _ = tokens(prompt="{task}: ", max_tokens=1000).encode(LONG)
        assert [id for document, ids in scored[0] if document == 0 for id in ids] == whole.ids[whole.scored].tolist()


def test_a_value_given_for_a_column_is_written_as_a_cell_that_was_read():
    one = tokens(prompt="{q}!")
    assert one.start(None, {"q": None}) == [TOKENIZER.bos_token_id, *ids_of("!")]
    assert one.start(None, {"q": True}) == [TOKENIZER.bos_token_id, *ids_of("true!")]
