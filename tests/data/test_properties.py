"""Any table is refused in one line, or every row of it is kept or counted."""

import csv
import gzip
import unicodedata
from collections import Counter
from contextlib import contextmanager

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bora.data.corpus import Corpus, build_corpus
from bora.data.read import read_documents
from bora.data.tokens import Tokens
from bora.errors import UserError
from bora.model.pretrained import load_packaged
from tests.data.inputs import data_group, to_csv, to_json, to_parquet

COLUMNS = ("task", "text", "date")
WRITERS = {
    "t.csv": lambda rows: to_csv(rows, COLUMNS, quoting=csv.QUOTE_ALL),
    "t.tsv": lambda rows: to_csv(rows, COLUMNS, separator="\t", ends="\r\n", quoting=csv.QUOTE_ALL),
    "t.csv.gz": lambda rows: gzip.compress(to_csv(rows, COLUMNS, quoting=csv.QUOTE_ALL)),
    "t.jsonl": lambda rows: to_json(dict(zip(COLUMNS, row, strict=True)) for row in rows),
    "t.parquet": lambda rows: parquet(rows),
}
# Names that are spelled alike, so that rows share a task, and others.
NAMES = ["a", "A", " a ", "b", "é", "e\u0301", "a\u00a0b", "a b", "a\tb"]
NAMES += ["Å", "\u212b", "\u200ba", "", " ", "NA", "../x"]
DATES = ["2001-01-01", "2001-01-02", "2001-01-02T00:30+01:00", "20001231", "1999", "2999-01-01", " 2001-01-03", ""]
QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)

letters = st.characters(exclude_categories=["Cs"])
names = st.sampled_from(NAMES) | st.text(letters, max_size=4)
texts = st.text(letters, max_size=12) | st.sampled_from(["", " ", "\t\n", "\u3000", "same", "one two three four"])
days = st.sampled_from(DATES[:7])
odd = st.tuples(names, texts, days | st.sampled_from(DATES) | st.text(letters, max_size=10))


@st.composite
def tables(draw) -> list[tuple[str, str, str]]:
    """Draw a table that mostly has tasks with enough documents, and rows of any kind among them."""
    rows = draw(st.lists(odd, max_size=6)) if draw(st.booleans()) else []
    for name in draw(st.lists(st.sampled_from(NAMES[:9]), max_size=4, unique=True)):
        rows += draw(st.lists(st.tuples(st.just(name), texts, days), min_size=5, max_size=9))
    return draw(st.permutations(rows))


selections = st.fixed_dictionaries(
    {
        "selection": st.sampled_from(["largest", "alphabetical", "chronological"]),
        "n_tasks": st.sampled_from([None, None, 1, 2]),
        "min_documents": st.sampled_from([3, 3, 3, 4, 0]),
        "max_documents": st.sampled_from([None, None, None, 6]),
        "documents_per_task": st.sampled_from([None, None, 3, 4]),
        "min_characters": st.sampled_from([0, 0, 3]),
        "drop_duplicates": st.booleans(),
    }
)
splits = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["random", "date"]),
        "validation": st.sampled_from([0.01, 0.25, 0.5]),
        "test": st.sampled_from([0.01, 0.25, 0.49]),
        "seed": st.integers(0, 9),
    }
)
encodings = st.fixed_dictionaries(
    {
        "max_tokens": st.sampled_from([4, 6, 8, 12, 2]),
        "prompt": st.sampled_from([None, None, None, "{task}: "]),
        "append_eos": st.booleans(),
        "prepend_bos": st.booleans(),
    }
)


def parquet(rows) -> bytes:
    return to_parquet(**{c: pa.array([row[i] for row in rows], pa.string()) for i, c in enumerate(COLUMNS)})


@pytest.fixture(scope="module")
def pretrained():
    return load_packaged("opt_mini")


@contextmanager
def one_line():
    """Accept a UserError in the context, if its message is one line."""
    said = ""
    try:
        yield
    except UserError as error:
        said = str(error)
    assert said.isprintable(), repr(said)


def plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).split())


def by_hand(rows, rule) -> tuple[list[int], Counter]:
    """Return the rows left before the cap, and how many were dropped for each reason, by plain loops."""
    left, dropped, seen = [], Counter(), set()
    for i, (name, text, _) in enumerate(rows):
        if not plain(name):
            dropped["without a task"] += 1
        elif not text.strip():
            dropped["empty"] += 1
        elif len(text) <= rule["min_characters"]:
            dropped[f"of {rule['min_characters']} characters or fewer"] += 1
        elif rule["drop_duplicates"] and (plain(name), text) in seen:
            dropped["repeated within their task"] += 1
        else:
            seen.add((plain(name), text))
            left.append(i)
    counts = Counter(plain(rows[i][0]) for i in left)
    fits = {t for t, n in counts.items() if rule["min_documents"] <= n <= (rule["max_documents"] or n)}
    dropped["of tasks outside the bounds on documents"] += sum(counts[t] for t in counts.keys() - fits)
    return [i for i in left if plain(rows[i][0]) in fits], dropped


def hold(corpus: Corpus, rows, rule, parts, how, tokenizer) -> None:
    """Compare a corpus with its rows."""
    table, account = corpus.documents, Counter(corpus.dropped)
    assert len(table) + account.total() == len(rows)
    left, dropped = by_hand(rows, rule)
    assert {reason: account[reason] for reason in dropped} == dropped
    counts = Counter(plain(rows[i][0]) for i in left)
    assert len(corpus.task_names) == min(len(counts), rule["n_tasks"] or len(counts))
    if rule["selection"] == "largest":
        by_size = sorted(counts, key=lambda t: (-counts[t], t))
        assert corpus.task_names == by_size[: len(corpus.task_names)]
    kept = [i for i in left if plain(rows[i][0]) in corpus.task_names]
    assert sum(n for reason, n in account.items() if "not chosen" in reason) == len(left) - len(kept)

    begin = [tokenizer.bos_token_id] if how["prepend_bos"] else []
    end = [tokenizer.eos_token_id] if how["append_eos"] else []
    whole, prompts = {}, {}
    for i in kept:
        name, text = plain(rows[i][0]), rows[i][1]
        ids = [tokenizer(t, add_special_tokens=False).input_ids for t in (f"{name}: " if how["prompt"] else "", text)]
        prompts[i], whole[i] = len(begin + ids[0]), begin + ids[0] + ids[1] + end
    scored = {i: min(len(whole[i]), how["max_tokens"]) - max(1, prompts[i]) for i in kept}
    cap = rule["documents_per_task"]
    if cap is None:
        assert table["row"].tolist() == [i for i in kept if scored[i] > 0]
        assert account["without a token to score"] == sum(n < 1 for n in scored.values())
    else:
        capped = sum(max(0, n - cap) for t, n in counts.items() if t in corpus.task_names)
        assert account["over the cap data.documents_per_task"] == capped
        assert set(table["row"]) <= {i for i in kept if scored[i] > 0}
    assert table["row"].is_monotonic_increasing
    assert table["row"].is_unique  # never in two splits
    for d, encoded in zip(table.itertuples(), corpus.encoded, strict=True):
        assert (d.task, d.text) == (plain(rows[d.row][0]), rows[d.row][1])
        assert encoded.ids.tolist() == whole[d.row][: how["max_tokens"]]
        assert (d.n_tokens, d.n_scored) == (len(encoded.ids), scored[d.row])
    lost = [len(whole[i]) - how["max_tokens"] for i in table["row"] if len(whole[i]) > how["max_tokens"]]
    assert (corpus.truncation.documents, corpus.truncation.tokens) == (len(lost), sum(lost))

    per_task = corpus.per_task()
    assert per_task.index.tolist() == corpus.task_names
    sizes = per_task[["n_train", "n_val", "n_test"]]
    assert (sizes >= 1).all(axis=None)
    assert sizes.sum(axis=1).to_dict() == table["task"].value_counts().to_dict()
    assert per_task["train_tokens"].sum() == table["n_scored"][table["split"] == "train"].sum()


@given(rows=tables(), rule=selections, parts=splits, how=encodings, file=st.sampled_from(list(WRITERS)))
@settings(QUICK, max_examples=150)
def test_every_row_is_kept_or_counted(rows, rule, parts, how, file, tmp_path, pretrained):
    (tmp_path / file).write_bytes(WRITERS[file](rows))
    with one_line():
        data = data_group(path=str(tmp_path / file), split=parts, **rule, **how)
        table = read_documents(data)
        corpus = build_corpus(table, Tokens.of(data, *pretrained), data)
        hold(corpus, rows, rule, parts, how, pretrained.tokenizer)


@given(data=st.binary(max_size=60) | st.text("task,x\"'\n\r\\{}[]: \t\0é", max_size=60).map(str.encode))
@settings(QUICK, max_examples=150)
def test_any_bytes_are_read_or_refused_in_one_line(data, tmp_path):
    for file, head in (("t.csv", b"task,text\n"), ("t.csv", b""), ("t.jsonl", b""), ("t.csv.zip", b"")):
        (tmp_path / file).write_bytes(head + data)
        with one_line():
            table = read_documents(data_group(path=str(tmp_path / file)))
            assert len(table)
            assert table.notna().all(axis=None)
