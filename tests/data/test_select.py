from datetime import UTC, datetime

import pandas as pd
import pytest

from bora.data import select as selection
from bora.data.dates import parse_dates
from bora.errors import UserError


def select(table: pd.DataFrame, order: str = "largest", **options):
    """Select without the default bound of 20 documents under the plain orders."""
    if order not in selection.RULE_BOUNDS:
        options.setdefault("min_documents", 1)
    return selection.select(table, order, **options)


def table(sizes: dict[str, int], dates: dict[str, str] | None = None) -> pd.DataFrame:
    rows = [(t, f"{t} says {i}", (dates or {}).get(t, "")) for t, n in sizes.items() for i in range(n)]
    return pd.DataFrame(rows, columns=["task", "text", "date"])


def test_chronological_orders_tasks_by_their_first_document():
    documents = table({"a": 3, "b": 3, "c": 3}, {"a": "2001-05-02", "b": "1999-01-01", "c": "2000-02-02"})
    documents.loc[8, "date"] = "1998-01-01"  # a document of c
    assert select(documents, "chronological", n_tasks=2)[1] == ["c", "b"]
    assert select(documents, "alphabetical", n_tasks=2)[1] == ["a", "b"]


def test_the_cap_draws_documents_by_seed_and_keeps_the_tables_order():
    t = table({"a": 50, "b": 5})
    one, two, other = (select(t, documents_per_task=10, seed=s)[0] for s in (0, 0, 1))
    assert one["task"].value_counts().to_dict() == {"a": 10, "b": 5}
    assert one.index.tolist() == two.index.tolist() == sorted(one.index)
    assert one.index.tolist() != other.index.tolist()


def test_a_list_of_caps_has_one_for_each_task_in_the_order_of_selection():
    t = table({"a": 20, "b": 50, "c": 5})
    kept, names, dropped = select(t, documents_per_task=[7, 30, 9])
    assert names == ["b", "a", "c"]
    assert kept["task"].value_counts().to_dict() == {"a": 20, "b": 7, "c": 5}
    assert dropped == {"over the cap data.documents_per_task": 43}


def test_the_papers_rule_is_chronological_and_above_100():
    dates = {"a": "2002-01-01", "b": "2001-01-01", "c": "2000-01-01"}
    _, names, _ = select(table({"a": 150, "b": 101, "c": 100}, dates), "paper")
    assert names == ["b", "a"]


def test_the_published_codes_rule_counts_documents_before_dropping_short_texts():
    t = table({"Åse B. Vik": 201, "Bo": 999, "C": 200, "D": 1000})
    t.loc[t["task"] == "Åse B. Vik", "text"] = ["x" * (10 if i else 60) for i in range(201)]
    t["text"] = t["text"].str.pad(50, side="right", fillchar="-").where(t["task"] != "Åse B. Vik", t["text"])
    kept, names, _ = select(t, "reference", n_tasks=25, min_characters=40, drop_duplicates=False)
    assert names == ["bo", "åse b vik"]
    assert kept["task"].value_counts().to_dict() == {"bo": 999, "åse b vik": 1}


def test_fewer_tasks_than_asked_for_are_all_taken(caplog):
    assert len(select(table({"a": 2, "b": 2}), n_tasks=5)[1]) == 2
    assert "only 2 tasks" in caplog.text


def test_the_plain_orders_require_20_documents_by_default():
    assert selection.select(table({"a": 20, "b": 19}))[1] == ["a"]


def test_a_missing_date_matters_only_if_the_task_has_no_other():
    t = table({"a": 3, "b": 3}, {"a": "2002-01-01", "b": "2001-01-01"})
    t.loc[0, "date"] = ""
    assert select(t, "chronological")[1] == ["b", "a"]
    t.loc[t["task"] == "a", "date"] = ""
    with pytest.raises(UserError, match="no date of the form"):
        select(t, "chronological")


PANDAS_3 = pytest.mark.skipif(pd.__version__ < "3", reason="pandas 2 has the years 1677 to 2262 alone")


@pytest.mark.parametrize(
    ("date", "moment"),
    [
        ("2001-02", "2001-02-01"),
        ("2001", "2001-01-01"),
        ("2001-02-03 04:05:06", "2001-02-03T04:05:06"),
        (" 2001-01-03\t", "2001-01-03"),
        ("2001-01-01T23:30-05:00", "2001-01-02T04:30"),
        pytest.param("0001-01-01", "0001-01-01", marks=PANDAS_3),
        pytest.param("9999-12-31", "9999-12-31", marks=PANDAS_3),
        ("2001-01-01T00:00:00.123456789", "2001-01-01T00:00:00.123456"),
    ],
)
def test_a_date_is_iso_8601_and_utc_without_a_time_zone(date, moment):
    (found,) = parse_dates(pd.DataFrame({"date": [date]}))
    assert found.isoformat() == datetime.fromisoformat(moment).replace(tzinfo=UTC).isoformat()
