import pandas as pd

from bora.data.split import split


def table(sizes: dict[str, int]) -> pd.DataFrame:
    rows = [(t, f"{t}{i}", f"2000-01-{i % 28 + 1:02d}") for t, n in sizes.items() for i in range(n)]
    return pd.DataFrame(rows, columns=["task", "text", "date"])


def counts(t: pd.DataFrame, parts: pd.Series) -> dict:
    return pd.crosstab(t["task"], parts).to_dict("index")


def test_each_task_is_split_by_the_fractions():
    t = table({"a": 100, "b": 20, "c": 3})
    assert counts(t, split(t, validation=0.17, test=0.33)) == {
        "a": {"train": 50, "validation": 17, "test": 33},
        "b": {"train": 10, "validation": 3, "test": 7},
        "c": {"train": 1, "validation": 1, "test": 1},
    }
    for validation, test in ((0.01, 0.98), (0.98, 0.01)):
        assert set(split(table({"a": 3}), validation=validation, test=test)) == {"train", "validation", "test"}


def test_a_tasks_split_does_not_depend_on_the_other_tasks():
    t = table({"a": 40, "b": 30})
    whole, alone = split(t, seed=3), split(t[t["task"] == "b"], seed=3)
    assert whole[alone.index].equals(alone)
    assert not split(t, seed=4).equals(whole)


def test_by_date_the_latest_documents_are_for_testing():
    t = table({"a": 20}).sample(frac=1, random_state=0)
    parts = split(t, method="date")
    dates = t["date"].groupby(parts)
    assert dates.max()["train"] <= dates.min()["validation"]
    assert dates.max()["validation"] <= dates.min()["test"]


def test_the_published_codes_split_equals_pandas_sample_with_seed_42():
    t = table({"a": 31, "b": 10})
    parts = split(t, method="reference")
    for task in "ab":
        rows = t[t["task"] == task]
        train = rows.sample(frac=0.5, random_state=42)
        rest = rows.drop(train.index)
        validation = rest.sample(frac=0.5, random_state=42)
        assert (parts[train.index] == "train").all()
        assert (parts[validation.index] == "validation").all()
        assert (parts[rest.drop(validation.index).index] == "test").all()
