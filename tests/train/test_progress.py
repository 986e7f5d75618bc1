"""The lines that are printed during training."""

import json
import re

import pandas as pd
import pytest
import torch

from bora.model.pretrained import load_packaged
from tests.conftest import table


def test_an_epochs_line_has_the_mean_over_its_scored_tokens(command, tmp_path):
    path = table(tmp_path / "t.csv", {"a": 24, "b": 30})
    data = f"data=table data.path={path} data.min_documents=5 data.max_tokens=20 data.batch_size=5".split()
    # The model stays the base model, since a LoRA adds nothing at its start.
    fit = "optim.lr=1e-20 trainer.max_epochs=2 trainer.accumulate_grad_batches=2 logger=none hydra.run.dir=run".split()
    code, out, _ = command(*data, *fit)
    assert code == 0
    frozen, nats, tokens = load_packaged("opt_mini"), 0.0, 0
    documents, texts = pd.read_csv(tmp_path / "run/documents.csv"), pd.read_csv(path)["text"]
    for row in documents[documents["split"] == "train"].itertuples():
        ids = frozen.tokenizer(texts[row.row], return_tensors="pt").input_ids[:, :20]
        with torch.no_grad():
            nats += frozen.model(ids, labels=ids).loss.item() * row.n_scored
        tokens += row.n_scored
    line = r"^epoch (./2): train NLL (\S+), validation \S+ \(ppl (\S+?)(, best)?\), \S+ tokens/s$"
    told = re.findall(line, out, re.MULTILINE)
    assert [(epoch, best) for epoch, *_, best in told] == [("1/2", ", best"), ("2/2", "")]
    assert [float(nll) for _, nll, *_ in told] == pytest.approx([nats / tokens] * 2, abs=6e-4)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert float(told[0][2]) == pytest.approx(summary["val_perplexity"], abs=6e-3)
