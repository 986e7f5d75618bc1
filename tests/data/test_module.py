import pandas as pd
import pytest

from bora.data.module import build_corpus
from bora.errors import UserError
from bora.model.pretrained import packaged

SPLIT = {"validation": 0.25, "test": 0.25}


@pytest.fixture(scope="module")
def tokenizer():
    return packaged("opt_mini").tokenizer


def table(sizes: dict[str, int]) -> pd.DataFrame:
    return pd.DataFrame(
        [(t, f"def {t}{i}(): return {i}") for t, n in sizes.items() for i in range(n)],
        columns=["task", "text"],
    )


def build(tokenizer, frame, selection=None, split_options=SPLIT, **encoding):
    return build_corpus(
        frame,
        tokenizer,
        selection=selection or {"min_documents": 1},
        split_options=split_options,
        encoding={"max_tokens": 32} | encoding,
    )


def test_documents_carry_their_row_in_the_table_and_their_tokens(tokenizer):
    frame = table({"a": 8, "b": 12})
    frame.loc[3, "text"] = " "
    corpus = build(tokenizer, frame)
    assert 3 not in set(corpus.documents["row"])
    for row, text, n, encoded in zip(
        *(corpus.documents[c] for c in ("row", "text", "n_tokens")), corpus.encoded, strict=True
    ):
        assert frame.loc[row, "text"] == text
        assert encoded.ids.tolist() == tokenizer(text).input_ids
        assert n == len(encoded.ids)
    assert corpus.per_task().loc["b"].tolist()[:3] == [6, 3, 3]
    assert (
        corpus.per_task()["train_tokens"].sum()
        == corpus.documents.query("split == 'train'")["n_scored"].sum()
    )


def test_the_hash_follows_texts_and_splits(tokenizer):
    frame = table({"a": 8})
    same, again = build(tokenizer, frame).sha256, build(tokenizer, frame.copy()).sha256
    assert same == again
    frame.loc[0, "text"] += " "
    assert build(tokenizer, frame).sha256 != same
    assert build(tokenizer, table({"a": 8}), split_options=SPLIT | {"seed": 1}).sha256 != same


def test_what_was_dropped_and_cut_is_said(tokenizer):
    frame = pd.concat(
        [table({"a": 6}), pd.DataFrame({"task": ["a"], "text": ["x = 1\n" * 99]})], ignore_index=True
    )
    corpus = build(tokenizer, frame)
    assert corpus.truncation.documents == 1
    assert "truncated: 1 documents" in corpus.describe()
    assert "7 documents" in corpus.describe()


def test_a_task_without_a_token_to_score_is_told(tokenizer):
    with pytest.raises(UserError, match="task 'a' has no document with a token to score"):
        build(tokenizer, table({"a": 6}), prompt="a prompt longer than thirty-two tokens " * 9)
