"""A corpus: its hashes, leakage between splits, names that look alike. test_properties.py compares it with its table."""

import csv
from collections import Counter

import pytest

from tests.data.inputs import corpus_of, data_group, docs, to_csv


@pytest.fixture
def build(tmp_path):
    """Write the rows to a table and build its corpus."""

    def build(rows, **options):
        (tmp_path / "t.csv").write_bytes(to_csv(rows, quoting=csv.QUOTE_ALL))
        return corpus_of(data_group(path=str(tmp_path / "t.csv"), **{"max_tokens": 16} | options))

    return build


def test_the_hashes_depend_on_texts_splits_and_tokens(build):
    one, same = build(docs("a", 8)), build(docs("a", 8))
    assert "1 tasks, 8 documents: 4 train (4 to 4 a task" in one.describe()
    assert (one.sha256, one.tokens_sha256()) == (same.sha256, same.tokens_sha256())
    others = [build([*docs("a", 7), ("a", "x ")]), build(docs("a", 8), split={"seed": 1})]
    assert len({c.sha256 for c in (one, *others)}) == 3
    shorter = build(docs("a", 8), max_tokens=9)
    assert shorter.sha256 == one.sha256
    assert shorter.tokens_sha256() != one.tokens_sha256()


def test_leakage_is_counted_within_a_task_and_across_tasks(build):
    rows = [*docs("a", 20), *docs("a", 5), *(("b", text) for _, text in docs("a", 15)), *docs("b", 10)]
    corpus = build(rows, drop_duplicates=False)
    documents, found = corpus.documents, corpus.leakage
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


def test_texts_that_are_equal_once_truncated_count_as_leakage(build):
    letters = [("a", f"Dear Sir or Madam, thank you for your letter of the {i}th") for i in range(20)]
    assert build(letters, max_tokens=64).leakage["test"]["in_all"] == 0
    cut = build(letters, max_tokens=6)
    assert cut.leakage["test"]["within_task"] == (cut.documents["split"] == "test").sum() > 0


def test_task_names_that_look_alike_are_reported(build, caplog):
    nfd = "Jose\u0301"
    build([*docs("Ann"), *docs("ann"), *docs("Ann\u200b"), *docs("José"), *((nfd, text) for _, text in docs("x"))])
    assert r"1 name(s) are spelled in more than one way" in caplog.text
    assert "stay different tasks: 'Ann' and 'ann' and 'Ann\\u200b'; if one task is meant" in caplog.text
    caplog.clear()
    build([*docs("Ann"), *docs("Bo")], n_tasks=2)
    assert not caplog.text
