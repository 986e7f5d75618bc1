"""New text under a run's models: the run's own figures again, and Bayes' rule done by loops."""

import json
import os
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

from bora.commands import evaluate as command_line
from bora.model.loading import load_backbone
from bora.use.evaluate import evaluate
from bora.use.restore import restore
from bora.use.score import likelihoods, measure_accuracy, wilson_interval
from tests.conftest import merged

NAMED = ["tau=100", "data.prompt=' [task] {task}'", "data.template=' [text] {text}'", "data.append_eos=true"]


@pytest.fixture
def line(call, tmp_path, monkeypatch):
    """`bora evaluate ARGUMENTS`, in a folder of its own: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    return partial(call, command_line.main)


CENTERED = ["tau=100", "prior.parameterization=centered"]


@pytest.mark.parametrize("overrides", [["tau=0"], CENTERED, NAMED, ["tau=inf"]])
def test_the_runs_own_test_rows_have_the_runs_own_perplexities(trained, line, tmp_path, overrides):
    run = trained(*overrides)
    documents = pd.read_csv(run / "documents.csv", keep_default_na=False)
    test = documents[documents["split"] == "test"]
    texts = pd.read_csv(run.parent / "t.csv", keep_default_na=False)["text"]
    pd.DataFrame({"who": test["task"], "what": texts[test["row"]].to_numpy()}).to_csv("new.csv", index=False)
    code, out, err = line(run, "--data", "new.csv", "--task", "who", "--text", "what")
    assert code == 0, err
    ours, theirs = (pd.read_csv(f"{folder}/per_task.csv") for folder in ("evaluation", run))
    assert ours["task"].tolist() == theirs["task"].tolist()
    assert ours["n_documents"].tolist() == theirs["n_test"].tolist()
    assert ours["n_tokens"].tolist() == theirs["test_tokens"].tolist()
    assert ours["perplexity"].tolist() == pytest.approx(theirs["test_perplexity"].tolist(), rel=1e-9)
    assert ours["nll"].tolist() == pytest.approx(theirs["test_nll"].tolist(), rel=1e-9)
    summary, of_run = (json.loads((f / "summary.json").read_text()) for f in (tmp_path / "evaluation", run))
    for key, name in (
        ("perplexity", "test_perplexity"),
        ("perplexity_macro", "test_perplexity_macro"),
        ("base_model_perplexity", "base_test_perplexity"),
    ):
        assert summary["perplexity"][key] == pytest.approx(of_run[name], rel=1e-9)
    assert f"{of_run['base_test_perplexity']:.2f}" in out
    if overrides == ["tau=inf"]:
        assert summary["perplexity"]["mean_model_perplexity"] == summary["perplexity"]["perplexity"]
        assert "only the prior, and names in a prompt, tell them apart" in err


@pytest.mark.parametrize(
    ("overrides", "prior"), [(["tau=100", "data.prepend_bos=false"], "documents"), (NAMED, "uniform")]
)
def test_the_posterior_is_that_of_a_loop_over_single_task_models(trained, overrides, prior):
    restored = restore(trained(*overrides))
    restored.model.double()
    names = restored.model.adapters.task_names
    texts = ["the house today", "a vote", "minister " * 40, "asks for this law and tomorrow", "x"]
    labels = ["", "a", "a longer name", "a", "a"]
    found = evaluate(restored, pd.DataFrame({"task": labels, "text": texts}), prior, 4)

    def ids(text: str) -> list[int]:
        return restored.tokenizer(text, add_special_tokens=False).input_ids

    named = overrides == NAMED
    prompts = [[2, *ids(f" [task] {name}")] if named else [] for name in names]
    room = 20 - max(map(len, prompts))
    nats = np.zeros((len(texts), len(names)))
    for d, name in enumerate(names):
        model = load_backbone(restored.cfg.model, "cpu", 20).model.double()
        model = merged(model, restored.model.tasks[name], restored.model.backbone.scale)
        for i, text in enumerate(texts):
            tokens = ([*ids(f" [text] {text}"), 2] if named else ids(text))[:room]
            whole = torch.tensor([prompts[d] + tokens])
            with torch.no_grad():
                log_p = model(whole).logits[0].log_softmax(-1)
            for t in range(max(1, len(prompts[d])), whole.shape[1]):
                nats[i, d] += log_p[t - 1, whole[0, t]].item()
    assert found.likelihoods.nats == pytest.approx(nats, rel=1e-9)
    n = restored.per_task.set_index("task")["n_train"]
    weights = np.array([n[name] if prior == "documents" else 1 for name in names], dtype=float)
    scores = nats + np.log(weights / weights.sum())
    posterior = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    documents = found.documents
    some = documents["n_scored"] > 0  # "x" alone is one token, which nothing stands before without a beginning
    assert some.tolist() == [True, True, True, True, named]
    assert documents["best"].tolist()[:4] == [names[d] for d in posterior.argmax(axis=1)][:4]
    assert documents["posterior"][some].tolist() == pytest.approx(posterior.max(axis=1)[some], rel=1e-9)
    own = [np.nan, *(posterior[i, names.index(t)] for i, t in ((1, "a"), (2, "a longer name"), (3, "a")))]
    assert documents["task_posterior"].tolist()[:4] == pytest.approx(own, rel=1e-9, nan_ok=True)
    evidence = np.log(np.exp(scores).sum(axis=1))[some].sum()
    tokens = documents["n_scored"].sum()
    assert found.mixture_perplexity == pytest.approx(np.exp(-evidence / tokens), rel=1e-9)
    same = likelihoods(restored, texts, 1000)
    assert same.nats == pytest.approx(nats, rel=1e-9)


def test_clearly_different_tasks_are_told_apart(trained, line, tmp_path):
    words = {"sea": "ship wave harbour salt", "farm": "cow field wheat plough", "sky": "star cloud sun rain"}
    rng = np.random.default_rng(0)

    def corpus(n: int) -> pd.DataFrame:
        rows = [(t, " ".join(rng.choice(w.split(), 8))) for t, w in words.items() for _ in range(n)]
        return pd.DataFrame(rows, columns=["task", "text"])

    corpus(30).to_csv("big.csv", index=False)
    run = trained(f"data.path={tmp_path}/big.csv", "trainer.max_epochs=3", "optim.lr=0.02")
    new = corpus(20)
    new.to_parquet("new.parquet")
    new[["text"]].to_csv("unlabelled.csv", index=False)
    code, out, err = line(run, "--data", "new.parquet", "--likelihoods", "parquet", "--out", "one")
    assert (code, err) == (0, "")
    summary = json.loads((tmp_path / "one/summary.json").read_text())
    found = summary["classification"]
    assert found["accuracy"] > 0.9
    assert (found["n"], found["chance"], found["majority"]) == (60, pytest.approx(1 / 3), pytest.approx(1 / 3))
    documents = pd.read_csv("one/documents.csv", keep_default_na=False)
    assert (documents["best"] == documents["task"]).mean() == pytest.approx(found["accuracy"])
    assert -np.log(documents["task_posterior"]).mean() == pytest.approx(found["log_loss"])
    assert f"accuracy {found['accuracy']:.3f}" in out
    # Without labels the same is said of the same texts.
    code, out, err = line(run, "--data", "unlabelled.csv", "--likelihoods", "csv", "--out", "two")
    assert (code, err) == (0, "")
    assert "accuracy" not in out
    blind = pd.read_csv("two/documents.csv", keep_default_na=False)
    assert blind["best"].tolist() == documents["best"].tolist()
    assert not (tmp_path / "two/per_task.csv").exists()
    first, second = pd.read_parquet("one/likelihoods.parquet"), pd.read_csv("two/likelihoods.csv")
    assert first["task"].tolist() == second["task"].tolist() == list(restore(run).model.tasks) * 60
    assert first["log_likelihood"].tolist() == pytest.approx(second["log_likelihood"].tolist())


def test_rows_that_are_left_out_are_reported(trained, line, tmp_path):
    run = trained("tau=100", "data.prepend_bos=false")
    tasks, texts = ["a", "nobody", "", "a longer name", "nobody"], ["the house", "a vote", "this law", "", "for a"]
    pd.DataFrame({"task": tasks, "text": texts}).to_csv("new.csv", index=False)
    code, _, err = line(run, "--data", "new.csv")
    assert code == 0
    assert "2 rows are of 1 task(s) that the run does not have: 'nobody' (2)" in err
    assert "1 rows name no task" in err
    assert "1 rows have no token to score" in err
    assert json.loads((tmp_path / "evaluation/summary.json").read_text())["documents"] == {
        "rows": 5,
        "of_the_runs_tasks": 2,
        "unlabelled": 1,
        "without_a_token_to_score": 1,
        "unknown_tasks": {"nobody": 2},
    }
    documents = pd.read_csv("evaluation/documents.csv", keep_default_na=False)
    assert documents["task"].tolist() == tasks
    assert (documents["best"] == "").tolist() == [False, False, False, True, False]
    assert (documents["task_posterior"] == "").tolist() == [False, True, True, True, True]
    assert pd.read_csv("evaluation/per_task.csv")["task"].tolist() == ["a"]


def test_accuracy_and_its_interval():
    for k, n in ((8, 10), (0, 5), (60, 60)):
        assert wilson_interval(k, n) == pytest.approx(tuple(binomtest(k, n).proportion_ci(method="wilson")))
    found = measure_accuracy(["a", "a", "b", "a"], ["a", "a", "b", "b"], 5)
    assert (found["accuracy"], found["macro_accuracy"]) == (0.75, 0.75)
    found = measure_accuracy(["a", "a", "a", "a"], ["a", "a", "a", "b"], 5)
    assert (found["accuracy"], found["macro_accuracy"], found["chance"], found["majority"]) == (0.75, 0.5, 0.2, 0.75)


def test_what_is_refused_leaves_the_run_and_an_earlier_evaluation(trained, line, tmp_path):
    run = trained("tau=100")
    data = run.parent / "t.csv"
    assert line(run, "--data", data)[0] == 0
    os.mkfifo("pipe")
    pd.DataFrame({"task": ["x"], "text": ["the house"]}).to_csv("unknown.csv", index=False)
    (tmp_path / "new.txt").write_text("text\na\n")
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')

    def content() -> dict:
        return {f: f.read_bytes() for folder in (tmp_path, run) for f in folder.rglob("*") if f.is_file()}

    before = content()
    for arguments, message in (
        ([run, "--data", "pipe"], "that is not a regular file"),
        ([run, "--data", "\x1b[31m.csv"], r"--data \x1b[31m.csv: there is no such file"),
        ([run, "--data", "unknown.csv"], "no row is of a task that the run has: the table has 'x'"),
        ([run, "--data", "empty.jsonl"], "no row has a text with a token to score"),
        ([run, "--data", data, "--batch-size", "0"], "--batch-size: '0'"),
        ([run, "--data", data, "--out", "new.txt"], "new.txt: nothing can be written there"),
        ([run, "--data", data, "--out", run], f"{run} holds a run"),
        (["nowhere", "--data", data], "no finished run"),
    ):
        code, out, err = line(*arguments)
        assert (code, "perplexity" in out) == (2, False), arguments
        assert err.startswith(("bora: ", "usage: "))
        assert message in err.splitlines()[-1]
        assert content() == before
