"""bora.fit from Python gives what the command gives on the same table."""

import logging

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

import bora
from bora.api import documents
from bora.data.table import read
from bora.errors import UserError
from bora.model.pretrained import load_packaged
from tests.conftest import table

SMALL = ["data.min_documents=5", "data.max_tokens=20", "trainer.max_epochs=1", "lora.rank=2"]


@pytest.fixture
def frame(tmp_path, monkeypatch) -> pd.DataFrame:
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    path = table(tmp_path / "t.csv", {"a": 24, "b": 40})
    return pd.read_csv(path).rename(columns={"task": "who", "text": "said"})


def test_a_frame_trains_as_its_table_does(frame, command, tmp_path):
    found = bora.fit(frame, *SMALL, task="who", text="said", tau=50, output="python")
    frame.to_csv("again.csv", index=False)
    data = "data=table data.path=again.csv data.task=who data.text=said"
    code, *_ = command(*data.split(), *SMALL, "tau=50", "logger=none", "hydra.run.dir=command")
    assert code == 0
    for name in ("per_task.csv", "documents.csv"):
        assert (tmp_path / "python" / name).read_text() == (tmp_path / "command" / name).read_text()
    assert found.per_task["task"].tolist() == ["b", "a"]
    assert set(found.model.tasks) == {"a", "b"}
    assert found.summary["tau"] == 50


def test_arrow_tables_and_model_folders_are_taken(frame, tmp_path):
    pretrained = load_packaged("opt_mini")
    pretrained.model.save_pretrained(tmp_path / "a model")
    pretrained.tokenizer.save_pretrained(tmp_path / "a model")
    options, model = {"task": "who", "text": "said"}, str(tmp_path / "a model")
    arrow = pa.Table.from_pandas(frame)
    found = bora.fit(arrow, *SMALL, "model.dtype=float32", model=model, output="one", **options)
    same = bora.fit(frame, *SMALL, output="two", **options)
    assert torch.equal(found.model.adapters.mean, same.model.adapters.mean)


def test_another_frame_is_not_taken_for_a_finished_one(frame):
    options = {"task": "who", "text": "said", "output": "run"}
    first = bora.fit(frame, *SMALL, **options)
    again = bora.fit(frame, *SMALL, **options)
    assert again.summary == first.summary
    with pytest.raises(UserError, match=r"other settings \(data\.sha256\)"):
        bora.fit(frame.iloc[1:], *SMALL, **options)


def test_arrows_integers_stay_integers_beside_gaps(tmp_path):
    tasks = pa.array([2**53, 2**53 + 1, None, 7])
    arrow = pa.table({"task": tasks, "text": ["a", "b", "c", "d"], "n": pa.array([1.0, None, 0.1, 1e16])})
    pa.parquet.write_table(arrow, tmp_path / "t.parquet")
    for given in (arrow, arrow.combine_chunks().to_batches()[0], datasets.Dataset(arrow)):
        found = documents(given, None, "text", None)
        assert found["task"].tolist() == ["9007199254740992", "9007199254740993", "", "7"]
        pd.testing.assert_frame_equal(found, read(str(tmp_path / "t.parquet")))
    numbers = documents(arrow, "n", "text", None)["task"].tolist()
    assert numbers == ["1.0", "", "0.1", "1e+16"]
    assert numbers == documents(arrow.to_pandas(), "n", "text", None)["task"].tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": "${tau}"}, "interpolation; rename it"),
        ({"output": "t.csv"}, "output=t.csv is a file"),
        ({"tau": -1}, "tau=-1"),
        ({"model": "no/such model"}, "no causal language model"),
    ],
)
def test_what_cannot_be_used_is_an_input_error(frame, change, said):
    with pytest.raises(UserError, match=said):
        bora.fit(frame, *SMALL, **({"task": "who", "text": "said"} | change))
    for column in (pa.array([1]), pa.chunked_array([[1]])):
        with pytest.raises(UserError, match=r"an Arrow table, not \w*Array"):
            bora.fit(column)
    with pytest.raises(UserError, match="rankk"):
        bora.fit(frame, "lora.rankk=3", task="who", text="said")
