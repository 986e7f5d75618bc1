import copy
from dataclasses import replace

import pandas as pd
import pytest
from transformers import AutoTokenizer

from bora.config.compose import compose_config
from bora.data.tokens import Tokens
from bora.errors import UserError
from bora.model.pretrained import load_packaged


@pytest.fixture(scope="module")
def tokenizer():
    return load_packaged("opt_mini").tokenizer


TABLE = pd.DataFrame({"task": ["b", "a"], "text": ["def f(x): return x", "æøå 水 🙂"]})


def test_a_text_comes_after_a_beginning_token_and_its_prompt(tokenizer):
    tokens = Tokens(tokenizer, len(tokenizer), 100, " [task] {task}")
    assert tokens.names_task
    assert tokens.before("b") == tokenizer(" [task] b").input_ids
    assert replace(tokens, prepend_bos=False).before("b") == tokenizer(" [task] b", add_special_tokens=False).input_ids
    assert not replace(tokens, prompt=None).names_task
    assert replace(tokens, prompt="a prompt").before(None) == tokenizer("a prompt").input_ids


def test_a_token_without_an_embedding_is_refused_with_its_row(tokenizer):
    tokens = Tokens(tokenizer, tokenizer("x =").input_ids[1], 100)  # as if the model's embeddings ended before " ="
    with pytest.raises(
        UserError, match=r"row 7 has the token 'Ġ=', number \d+ of the tokenizer, and the model has emb"
    ):
        tokens.encode(pd.DataFrame({"task": "a", "text": ["", "x ="]}, index=[3, 7]))


def test_a_tokenizer_without_an_end_token_is_refused_if_one_is_needed(tokenizer):
    pretrained, bare = load_packaged("opt_mini"), copy.deepcopy(tokenizer)
    bare.eos_token = None
    data = compose_config([])[0].data
    assert Tokens.of(data, pretrained.model, bare).vocabulary == pretrained.model.config.vocab_size
    for setting in ("append_eos", "score_padding"):
        with pytest.raises(UserError, match=f"data.{setting}=true: the tokenizer has no end-of-text token"):
            Tokens.of(data.model_copy(update={setting: True}), pretrained.model, bare)


def test_a_braced_text_is_not_a_template(tokenizer):
    table = pd.DataFrame({"task": ["{text}"], "text": ["{task} {0} {"]})
    (document,), _ = Tokens(tokenizer, len(tokenizer), 100, "{task}: ", "<{text}>").encode(table)
    assert tokenizer.decode(document.ids, skip_special_tokens=True) == "{text}: <{task} {0} {>"


def test_without_a_beginning_token_the_first_token_is_not_scored(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    bare = AutoTokenizer.from_pretrained(tmp_path)
    from tokenizers import processors

    bare.backend_tokenizer.post_processor = processors.ByteLevel()
    assert Tokens(bare, len(bare), 100).before("a") == []
    assert Tokens(tokenizer, len(tokenizer), 100).before("a") == [tokenizer.bos_token_id]
    for single, before in (("<pad> <s> $A", [1, 0]), ("$A </s>", [])):  # as GLM-4's; only an end
        ids = [("<s>", 0), ("<pad>", 1), ("</s>", 2)]
        bare.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
        assert Tokens(bare, len(bare), 100).before("a") == before
    bare.backend_tokenizer.post_processor = processors.ByteLevel()
    (document, _), _ = Tokens(bare, len(bare), 100).encode(TABLE)
    assert document.n_scored == len(document.ids) - 1


OPTIONS = {"max_tokens": 12, "prompt": " [task] {task}", "append_eos": True}


def test_cached_tokens_equal_fresh_ones_and_depend_on_texts_and_settings(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("BORA_CACHE", str(tmp_path))
    table = pd.DataFrame({"task": ["b", "a", "a"], "text": ["def f(x): return x", "æøå 水 🙂" * 9, ""]})
    tokens = Tokens(tokenizer, len(tokenizer), **OPTIONS)
    fresh, cut = tokens.encode(table, cached=True)
    (file,) = tmp_path.rglob("*.arrow")
    with monkeypatch.context() as patch:
        patch.setattr(Tokens, "_encode", lambda *a: pytest.fail("tokenised again"))
        again, cut_again = tokens.encode(table, cached=True)
    assert cut == cut_again
    assert cut.documents > 0
    for one, other in zip(fresh, again, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.scored.tolist() == other.scored.tolist()
    # Everything that decides the tokens is in the cache's key.
    for other_table, options in (
        (table.assign(text=["def f(x): return y", *table["text"][1:]]), {}),
        (table.assign(task="a"), {}),
        (table.assign(task=["ba", "", "a"], text=["def", *table["text"][1:]]), {}),
        (table, {"max_tokens": 11}),
        (table, {"prompt": None}),
        (table, {"append_eos": False}),
        (table, {"prepend_bos": False}),
        (table, {"template": "<{text}>"}),
    ):
        n_files = len(list(tmp_path.rglob("*.arrow")))
        replace(tokens, **options).encode(other_table, cached=True)
        assert len(list(tmp_path.rglob("*.arrow"))) == n_files + 1
    tokenizer.split_special_tokens = True  # not saved in the tokenizer's file
    tokens.encode(table, cached=True)
    assert len(list(tmp_path.rglob("*.arrow"))) == n_files + 2
    assert file.is_file()


def test_a_damaged_cache_is_rebuilt(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setenv("BORA_CACHE", str(tmp_path))
    fresh, _ = Tokens(tokenizer, len(tokenizer), **OPTIONS).encode(TABLE, cached=True)
    (file,) = tmp_path.rglob("*.arrow")
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b""):
        file.write_bytes(damaged)
        again, _ = Tokens(tokenizer, len(tokenizer), **OPTIONS).encode(TABLE, cached=True)
        assert [d.ids.tolist() for d in again] == [d.ids.tolist() for d in fresh]
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == [file]
    assert file.read_bytes() == whole


def test_documents_are_encoded_even_if_the_cache_cannot_be_written(tokenizer, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BORA_CACHE", str(tmp_path / "file"))
    assert len(Tokens(tokenizer, len(tokenizer), 100).encode(TABLE, cached=True)[0]) == 2
