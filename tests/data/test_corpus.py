"""Every row of a table is a document of the corpus, or counted as dropped by a reason."""

import csv
import hashlib
import json
from collections import Counter

import pytest

from bora.model.pretrained import load_packaged
from tests.data.inputs import corpus_of, data_group, docs, to_csv

LONG = " ".join(f"word{i}" for i in range(3000))
WHITE = ["", " ", "\t", "\n", "\r\n", "\u00a0", "\u2003\u3000", "\x1c\x1f", "\x85", "\u2028"]
INVISIBLE = ["\u200b", "\ufeff", "\u00ad", "\u2060\u200d", "\0"]


@pytest.fixture
def build(tmp_path):
    """Write the rows to a table and build its corpus."""

    def build(rows, **options):
        (tmp_path / "t.csv").write_bytes(to_csv(rows, quoting=csv.QUOTE_ALL))
        return corpus_of(data_group(path=str(tmp_path / "t.csv"), **{"max_tokens": 16} | options))

    return build


def test_what_is_dropped_and_what_becomes_of_each_row(build):
    tokenizer = load_packaged("opt_mini").tokenizer
    rows = [*docs("a", 8), *(("a", text) for text in INVISIBLE), ("a", LONG)]
    rows += [*((" a ", text) for _, text in docs("a", 2)), ("", "x"), ("\u00a0", "y")]
    rows += [*(("a", text) for text in WHITE), *docs("b", 4), ("b", rows[0][1]), *docs("c", 3), *docs("d", 2)]
    corpus = build(rows, n_tasks=2)
    assert corpus.task_names == ["a", "b"]
    assert corpus.dropped == {
        "repeated within their task": 2,
        "without a task": 2,
        "empty": len(WHITE),
        "of tasks outside the bounds on documents": 2,
        "of 1 tasks not chosen (data.n_tasks)": 3,
    }
    kept = [*range(14), *range(28, 33)]
    assert corpus.documents["row"].tolist() == kept
    digest, lengths = hashlib.sha256(), []
    for d, encoded in zip(corpus.documents.itertuples(), corpus.encoded, strict=True):
        task, text = rows[d.row]
        lengths.append(len(tokenizer(text).input_ids))
        assert (d.task, d.text) == (task, text)
        assert encoded.ids.tolist() == tokenizer(text).input_ids[:16]
        assert (d.n_tokens, d.n_scored) == (min(lengths[-1], 16), min(lengths[-1], 16) - 1)
        digest.update(json.dumps([d.row, task, d.split, text]).encode() + b"\n")
    assert corpus.sha256 == digest.hexdigest()
    assert corpus.truncation.documents == sum(n > 16 for n in lengths)
    assert corpus.truncation.tokens == sum(max(0, n - 16) for n in lengths)
    counts = corpus.per_task()
    assert counts[["n_train", "n_val", "n_test"]].to_numpy().tolist() == [[6, 4, 4], [3, 1, 1]]
    scored = corpus.documents.query("split == 'train'").groupby("task")["n_scored"].sum()
    assert counts["train_tokens"].to_dict() == scored.to_dict()
    assert "2 tasks, 19 documents: 9 train (3 to 6 a task" in corpus.describe()


def test_the_hashes_follow_texts_splits_and_tokens(build):
    one, same = build(docs("a", 8)), build(docs("a", 8))
    assert (one.sha256, one.tokens_sha256()) == (same.sha256, same.tokens_sha256())
    others = [build([*docs("a", 7), ("a", "x ")]), build(docs("a", 8), split={"seed": 1})]
    assert len({c.sha256 for c in (one, *others)}) == 3
    shorter = build(docs("a", 8), max_tokens=9)
    assert shorter.sha256 == one.sha256
    assert shorter.tokens_sha256() != one.tokens_sha256()


def test_leakage_is_counted_within_a_task_and_across(build):
    rows = [*docs("a", 20), *docs("a", 5), *(("b", text) for _, text in docs("a", 15)), *docs("b", 10)]
    corpus = build(rows, drop_duplicates=False)
    documents, found = corpus.documents, corpus.leakage()
    for part, before in (("validation", ["train"]), ("test", ["train", "validation"])):
        here, earlier = documents[documents["split"] == part], documents[documents["split"].isin(before)]
        pairs = Counter(zip(earlier["task"], earlier["text"], strict=True))
        assert found[part] == {
            "within_task": sum(pair in pairs for pair in zip(here["task"], here["text"], strict=True)),
            "in_all": sum(text in set(earlier["text"]) for text in here["text"]),
        }
    assert 0 < found["test"]["within_task"] < found["test"]["in_all"]
    assert (
        f"{found['test']['in_all']} of 12 test documents repeat a text of training or validation" in corpus.describe()
    )


def test_names_that_a_person_may_take_for_one_are_reported(build, caplog):
    nfd = "Jose\u0301"
    build([*docs("Ann"), *docs("ann"), *docs("Ann\u200b"), *docs("José"), *((nfd, text) for _, text in docs("x"))])
    assert r"1 name(s) are spelled in more than one way" in caplog.text
    assert "stay different tasks: 'Ann' and 'ann' and 'Ann\\u200b'; if one task is meant" in caplog.text
    caplog.clear()
    build([*docs("Ann"), *docs("Bo")], n_tasks=2)
    assert not caplog.text
