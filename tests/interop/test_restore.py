"""A finished run is restored as the very model that was tested."""

import pandas as pd
import pytest
import torch

from bora.errors import InputError
from bora.interop.restore import restore
from tests.conftest import table


@pytest.mark.parametrize(
    ("tau", "form"), [("0", "centered"), ("100", "noncentered"), ("100", "centered"), ("inf", "centered")]
)
def test_a_restored_model_has_the_runs_own_test_nll(command, tmp_path, tau, form):
    path = table(tmp_path / "t.csv", {"a": 24, "b/c": 40})
    code, _, _ = command(
        f"tau={tau}", f"prior.parameterization={form}", "data=table", f"data.path={path}", "data.min_documents=5",
        "data.max_tokens=20", "trainer.max_epochs=1", "optim.lr=0.01", "hydra.run.dir=run", "logger=none",
    )  # fmt: skip
    assert code == 0
    restored = restore(tmp_path / "run")
    documents = pd.read_csv(tmp_path / "run/documents.csv", keep_default_na=False)
    texts = pd.read_csv(path, keep_default_na=False)["text"]
    for row in restored.directory.per_task().itertuples():
        nats = tokens = 0
        test = documents[(documents["task"] == row.task) & (documents["split"] == "test")]
        for d in test.itertuples():
            ids = restored.tokenizer(texts[d.row], return_tensors="pt").input_ids[:, :20]
            task = torch.tensor([restored.model.adapters.task_names.index(row.task)])
            with torch.no_grad():
                nats += restored.model.document_nll({"input_ids": ids, "labels": ids, "task": task}).item()
            tokens += d.n_scored
        assert nats / tokens == pytest.approx(row.test_nll, rel=1e-5)


def test_a_folder_without_a_finished_run_is_told(tmp_path):
    with pytest.raises(InputError, match="no finished run"):
        restore(tmp_path)
