import pandas as pd
import pytest
from transformers import AutoTokenizer

from bora.data.encoding import beginning, encode
from bora.errors import InputError
from bora.model.backbone import packaged


@pytest.fixture(scope="module")
def tokenizer():
    return packaged("opt_mini").tokenizer


TABLE = pd.DataFrame({"task": ["b", "a"], "text": ["def f(x): return x", "æøå 水 🙂"]})


def test_without_prompt_a_document_is_the_tokenizers_own_encoding(tokenizer):
    documents, truncation = encode(TABLE, tokenizer, 100)
    for text, document in zip(TABLE["text"], documents, strict=True):
        assert document.ids.tolist() == tokenizer(text).input_ids
        assert document.n_scored == len(document.ids) - 1
    assert truncation.documents == truncation.tokens == 0


def test_every_text_survives_the_byte_level_tokenizer(tokenizer):
    documents, _ = encode(TABLE, tokenizer, 100)
    assert [tokenizer.decode(d.ids, skip_special_tokens=True) for d in documents] == TABLE["text"].tolist()


def test_prompt_is_there_and_not_scored_text_and_end_are(tokenizer):
    documents, _ = encode(TABLE, tokenizer, 100, " [task] {task}", " [text] {text}", append_eos=True)
    prompt = tokenizer(" [task] b").input_ids
    text = tokenizer(" [text] def f(x): return x", add_special_tokens=False).input_ids
    assert documents[0].ids.tolist() == [*prompt, *text, tokenizer.eos_token_id]
    assert documents[0].n_scored == len(text) + 1


def test_a_braced_text_is_not_a_template(tokenizer):
    table = pd.DataFrame({"task": ["{text}"], "text": ["{task} {0} {"]})
    (document,), _ = encode(table, tokenizer, 100, "{task}: ", "<{text}>")
    assert tokenizer.decode(document.ids, skip_special_tokens=True) == "{text}: <{task} {0} {>"


def test_long_documents_are_cut_and_counted(tokenizer):
    table = pd.DataFrame({"task": "a", "text": ["x = 1\n" * 50, "y"]})
    whole = len(tokenizer(table["text"][0]).input_ids)
    documents, truncation = encode(table, tokenizer, 10)
    assert [len(d.ids) for d in documents] == [10, len(tokenizer("y").input_ids)]
    assert (truncation.documents, truncation.tokens) == (1, whole - 10)


def test_a_prompt_that_fills_the_document_leaves_nothing_to_score(tokenizer):
    (document, _), _ = encode(TABLE, tokenizer, 4, "a long prompt for {task}, longer than it may be")
    assert document.n_scored == 0


def test_without_a_beginning_token_the_first_token_is_not_scored(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    bare = AutoTokenizer.from_pretrained(tmp_path)
    from tokenizers import processors

    bare.backend_tokenizer.post_processor = processors.ByteLevel()
    assert beginning(bare) == []
    assert beginning(tokenizer) == [tokenizer.bos_token_id]
    (document, _), _ = encode(TABLE, bare, 100)
    assert document.n_scored == len(document.ids) - 1


def test_bad_options_are_refused(tokenizer):
    with pytest.raises(InputError, match="max_tokens"):
        encode(TABLE, tokenizer, 1)
    with pytest.raises(InputError, match="template"):
        encode(TABLE, tokenizer, 10, template="no field")
