"""Hugging Face datasets are read as the table that they hold."""

import datasets
import pandas as pd
import pytest

from bora.data.datasets import read
from bora.errors import UserError

ROWS = {"who": [0, 1, 0, -1], "said": ["one", "two", None, "four"], "n": [1, 2, 3, 4]}


@pytest.fixture
def dataset() -> datasets.Dataset:
    features = datasets.Features(
        {
            "who": datasets.ClassLabel(names=["Zoë", "b/c"]),
            "said": datasets.Value("string"),
            "n": datasets.Value("int64"),
        }
    )
    return datasets.Dataset.from_dict(ROWS, features=features)


def expected() -> pd.DataFrame:
    rows = [("Zoë", "one", ""), ("b/c", "two", ""), ("Zoë", "", ""), ("", "four", "")]
    return pd.DataFrame(rows, columns=["task", "text", "date"])


def test_a_saved_dataset_gives_its_columns_and_the_labels_names(dataset, tmp_path):
    dataset.save_to_disk(tmp_path / "saved")
    found = read(str(tmp_path / "saved"), task="who", text="said")
    pd.testing.assert_frame_equal(found, expected(), check_dtype=False)


def test_one_split_or_all_of_them(dataset, tmp_path):
    datasets.DatasetDict({"train": dataset, "test": dataset.select([1])}).save_to_disk(tmp_path / "saved")
    options = {"task": "who", "text": "said"}
    assert len(read(str(tmp_path / "saved"), **options)) == 4
    assert read(str(tmp_path / "saved"), split="test", **options)["task"].tolist() == ["b/c"]
    assert len(read(str(tmp_path / "saved"), split="all", **options)) == 5
    with pytest.raises(UserError, match=r"data\.split_name=dev.*train, test"):
        read(str(tmp_path / "saved"), split="dev", **options)


def test_a_folder_of_files_and_numbers_as_names(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "files").mkdir()
    pd.DataFrame(ROWS | {"said": list("abcd")}).to_parquet(tmp_path / "files/part.parquet")
    found = read(str(tmp_path / "files"), task="n", text="said")
    assert found["task"].tolist() == ["1", "2", "3", "4"]
    assert found["text"].tolist() == list("abcd")


CARD = """---
dataset_info:
  features:
  - name: who
    dtype:
      class_label:
        names:
          '0': Zoë
          '1': b/c
  - name: said
    dtype: string
  - name: id
    dtype: string
---
"""


def test_the_labels_that_a_card_declares_name_the_tasks_of_csv_files_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "files").mkdir()
    (tmp_path / "files/README.md").write_text(CARD, "utf-8")
    (tmp_path / "files/data.csv").write_text("who,said,id\n0,one,007\n1,NA,2\n", "utf-8")
    found = read(str(tmp_path / "files"), task="who", text="said")
    assert found["task"].tolist() == ["Zoë", "b/c"]
    assert found["text"].tolist() == ["one", "NA"]
    assert read(str(tmp_path / "files"), task="id", text="said")["task"].tolist() == ["007", "2"]
    (tmp_path / "files/data.csv").write_text("who,said,id\n0,one,007\n,two,2\n", "utf-8")
    with pytest.raises(UserError, match="Invalid string class label"):
        read(str(tmp_path / "files"), task="who", text="said")


def test_what_is_not_there_is_told(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(
        datasets,
        "load_dataset_builder",
        lambda *a: (_ for _ in ()).throw(ConnectionError("no network\nat all")),
    )
    with pytest.raises(UserError, match=r"could not be loaded as a dataset \(ConnectionError: no network\)"):
        read("someone/speeches")
    with pytest.raises(UserError, match="no such folder"):
        read("./nowhere")
    dataset.save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"data\.text=text: .* has no such column; it has who, said, n"):
        read(str(tmp_path / "saved"), task="who")
