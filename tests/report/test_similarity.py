"""Which tasks are alike: cosines of their deviations, and the share that a column explains."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bora.report.similarity import compare_tasks, explained_variance
from tests.report.runs import evidence_of, write_run


def checkpoint(folder: Path, theta: np.ndarray, names: list[str], form: str) -> None:
    """Write a best.ckpt whose θ_d − Θ are the given rows."""
    mean, state = torch.full((1, theta.shape[1] // 2), 5.0), {}
    for factor, part in zip("AB", torch.tensor(theta).float().unflatten(1, (2, 1, -1)).unbind(1), strict=True):
        stem = f"adapters.stacks.layer.{factor}"
        state[f"{stem}_mean"] = mean
        state[stem if form == "centered" else f"{stem}_offset"] = part + mean * (form == "centered")
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    about = {"task_names": names, "layers": ["layer"]}
    torch.save({"state_dict": state, "hyper_parameters": about}, folder / "checkpoints/best.ckpt")


@pytest.mark.parametrize("form", ["centered", "noncentered"])
def test_tasks_are_compared_by_the_cosine_of_their_deviations(tmp_path, form):
    theta = np.random.default_rng(0).normal(size=(6, 8))
    theta[4], theta[1] = theta[0] + 0.1 * theta[4], theta[3] - 0.1 * theta[1]
    run = evidence_of(write_run(tmp_path / "r", 10.0)).series.runs[0]
    checkpoint(run.folder, theta, list("abcdef"), form)
    found = compare_tasks(run)
    centred = theta - theta.mean(0)
    length = np.linalg.norm(centred, axis=1)
    np.testing.assert_allclose(found.cosines, centred @ centred.T / np.outer(length, length), atol=1e-5)
    order = found.order.tolist()
    assert sorted(order) == list(range(6))
    assert abs(order.index(0) - order.index(4)) == abs(order.index(1) - order.index(3)) == 1


def test_the_share_that_a_column_explains_equals_the_between_group_sum_of_squares(tmp_path):
    x = np.random.default_rng(0).normal(size=(12, 5))
    x[:6] += 4
    x -= x.mean(0)
    groups = pd.Series(["p"] * 6 + ["q"] * 6)
    between = sum(len(x[g]) * (x[g].mean(0) ** 2).sum() for g in (groups == "p", groups == "q"))
    explained, chance, p_value = explained_variance(x @ x.T, groups)
    assert explained == pytest.approx(between / (x**2).sum())
    assert chance == pytest.approx(1 / 11, abs=0.02)  # (groups − 1) / (tasks − 1)
    assert p_value < 0.02


@pytest.mark.figures
def test_figure_6_is_coloured_by_a_column_of_the_table(tmp_path, report):
    parties = {"ann": "left", "bo": "right", "cy": "left"}
    rows = [(task, party, f"speech {i}", "_under") for task, party in parties.items() for i in range(4)]
    table = pd.DataFrame(rows, columns=["task", "party", "text", "$\\frac$"])
    table.to_csv(tmp_path / "t.csv", index=False)
    where = {"data__path": str(tmp_path / "t.csv"), "data__task": "task"}
    folder = write_run(tmp_path / "s/10", 10.0, **where)
    write_run(tmp_path / "s/0", 0.0, **where)
    documents = table.assign(row=table.index, split="train", n_tokens=3, n_scored=2)
    documents[["row", "task", "split", "n_tokens", "n_scored"]].to_csv(folder / "documents.csv", index=False)
    checkpoint(folder, np.array([[1.0, 0, 0, 0], [0, 2, 0, 1], [1, 0.5, 0, 0]]), ["ann", "bo", "cy"], "noncentered")
    code, _, err = report("s", "--color-by", "party")
    assert code == 0
    assert "bora:" not in err
    assert "party explains" in (tmp_path / "report/index.html").read_text()
    assert report("s", "--color-by", "$\\frac$")[0] == 0
    code, _, err = report("s", "--color-by", "planet")
    assert code == 0
    assert "figure 6 has no colours: --color-by=planet" in err
    assert "no such column" in err
    assert (tmp_path / "report/figure6.png").is_file()
    table.iloc[4:].to_csv("t.csv", index=False)  # rows now belong to other tasks
    code, _, err = report("s", "--color-by", "party")
    assert (code, "figure 6 has no colours: the corpus has changed" in err) == (0, True)
