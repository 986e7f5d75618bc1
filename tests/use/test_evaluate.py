"""New text under a run's models: the run's own figures are reproduced, and Bayes' rule equals loops."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bora.commands import evaluate as command_line
from bora.commands import ls
from bora.model.loading import load_backbone
from bora.report.series import run_folders
from bora.runs.directory import RunDirectory
from bora.train.authorship import score_tasks
from bora.use.evaluate import evaluate
from bora.use.restore import restore
from bora.use.score import measure_accuracy
from tests.conftest import merged

NAMED = ["tau=100", "data.prompt=' [task] {task}'", "data.template=' [text] {text}'", "data.append_eos=true"]


@pytest.fixture
def run_evaluate(call, tmp_path, monkeypatch):
    """Run `bora evaluate ARGUMENTS` in a new folder; return exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    return partial(call, command_line.main)


CENTERED = ["tau=100", "prior.parameterization=centered"]


@pytest.mark.parametrize("overrides", [["tau=0"], CENTERED, NAMED, ["tau=inf"]])
def test_a_runs_own_test_rows_reproduce_its_perplexities(trained, run_evaluate, tmp_path, overrides):
    run = trained(*overrides)
    documents = pd.read_csv(run / "documents.csv", keep_default_na=False)
    test = documents[documents["split"] == "test"]
    texts = pd.read_csv(run.parent / "t.csv", keep_default_na=False)["text"]
    pd.DataFrame({"who": test["task"], "what": texts[test["row"]].to_numpy()}).to_csv("new.csv", index=False)
    columns = "--task", "who", "--text", "what"
    code, out, err = run_evaluate(run, "--data", "new.csv", *columns, "--out", "evaluation", "--include-trained")
    assert code == 0, err
    ours, theirs = (pd.read_csv(f"{folder}/per_task.csv") for folder in ("evaluation", run))
    assert ours["task"].tolist() == theirs["task"].tolist()
    assert ours["n_documents"].tolist() == theirs["n_test"].tolist()
    assert ours["n_tokens"].tolist() == theirs["test_tokens"].tolist()
    assert ours["perplexity"].tolist() == pytest.approx(theirs["test_perplexity"].tolist(), rel=1e-9)
    assert ours["nll"].tolist() == pytest.approx(theirs["test_nll"].tolist(), rel=1e-9)
    summary, of_run = (json.loads((f / "summary.json").read_text()) for f in (tmp_path / "evaluation", run))
    keys = {"perplexity": "test_perplexity", "perplexity_macro": "test_perplexity_macro"}
    for key, name in (keys | {"base_model_perplexity": "base_test_perplexity"}).items():
        assert summary["perplexity"][key] == pytest.approx(of_run[name], rel=1e-9)
    assert f"{of_run['base_test_perplexity']:.2f}" in out
    if overrides == ["tau=inf"]:
        assert summary["perplexity"]["mean_model_perplexity"] == summary["perplexity"]["perplexity"]
        assert "only the prior, and names in a prompt, tell them apart" in err


@pytest.mark.parametrize(
    ("overrides", "prior"), [(["tau=100", "data.prepend_bos=false"], "documents"), (NAMED, "uniform")]
)
def test_the_posterior_equals_a_loop_over_single_task_models(trained, overrides, prior):
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
    n = restored.directory.per_task().set_index("task")["n_train"]
    weights = np.array([n[name] if prior == "documents" else 1 for name in names], dtype=float)
    scores = nats + np.log(weights / weights.sum())
    posterior = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    documents = found.documents
    some = documents["n_scored"] > 0  # "x" is one token, which without a beginning token nothing precedes
    assert some.tolist() == [True, True, True, True, named]
    assert documents["best"].tolist()[:4] == [names[d] for d in posterior.argmax(axis=1)][:4]
    assert documents["posterior"][some].tolist() == pytest.approx(posterior.max(axis=1)[some], rel=1e-9)
    own = [np.nan, *(posterior[i, names.index(t)] for i, t in ((1, "a"), (2, "a longer name"), (3, "a")))]
    assert documents["task_posterior"].tolist()[:4] == pytest.approx(own, rel=1e-9, nan_ok=True)
    evidence = np.log(np.exp(scores).sum(axis=1))[some].sum()
    tokens = documents["n_scored"].sum()
    assert found.mixture_perplexity == pytest.approx(np.exp(-evidence / tokens), rel=1e-9)
    same = score_tasks(restored.model, restored.tokens, pd.DataFrame({"text": texts}), 1000)
    assert same.nats == pytest.approx(nats, rel=1e-9)


def test_clearly_different_tasks_are_told_apart(trained, run_evaluate, tmp_path):
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
    code, out, err = run_evaluate(run, "--data", "new.parquet", "--likelihoods", "parquet", "--out", "one")
    assert (code, err) == (0, "")
    summary = json.loads((tmp_path / "one/summary.json").read_text())
    found = summary["classification"]
    assert found["accuracy"] > 0.9
    assert (found["n"], found["chance"], found["majority"]) == (60, pytest.approx(1 / 3), pytest.approx(1 / 3))
    documents = pd.read_csv("one/documents.csv", keep_default_na=False)
    assert (documents["best"] == documents["task"]).mean() == pytest.approx(found["accuracy"])
    assert -np.log(documents["task_posterior"]).mean() == pytest.approx(found["log_loss"])
    assert f"accuracy {found['accuracy']:.3f}" in out
    # Without labels the same texts have the same posteriors.
    code, out, err = run_evaluate(run, "--data", "unlabelled.csv", "--likelihoods", "csv", "--out", "two")
    only = "bora: no row names a task, so there is only the posterior; name the column of tasks with --task\n"
    assert (code, err) == (0, only)
    assert "accuracy" not in out
    blind = pd.read_csv("two/documents.csv", keep_default_na=False)
    assert blind["best"].tolist() == documents["best"].tolist()
    assert not (tmp_path / "two/per_task.csv").exists()
    first, second = pd.read_parquet("one/likelihoods.parquet"), pd.read_csv("two/likelihoods.csv")
    assert first["task"].tolist() == second["task"].tolist() == list(restore(run).model.tasks) * 60
    assert first["log_likelihood"].tolist() == pytest.approx(second["log_likelihood"].tolist())


def test_rows_that_are_left_out_are_reported(trained, run_evaluate, tmp_path):
    run = trained("tau=100", "data.prepend_bos=false")
    tasks, texts = ["a", "nobody", "", "a longer name", "nobody"], ["our house", "one vote", "his law", "", "for one"]
    pd.DataFrame({"task": tasks, "text": texts}).to_csv("new.csv", index=False)
    code, _, err = run_evaluate(run, "--data", "new.csv", "--out", "evaluation")
    assert code == 0
    assert "2 rows are of 1 task(s) that the run does not have: 'nobody' (2)" in err
    assert "1 rows name no task" in err
    assert "1 rows have no token to score" in err
    counts = {"rows": 5, "of_the_runs_tasks": 2, "unlabelled": 1, "without_a_token_to_score": 1, "trained_on": 0}
    counts["unknown_tasks"] = {"nobody": 2}
    assert json.loads((tmp_path / "evaluation/summary.json").read_text())["documents"] == counts
    documents = pd.read_csv("evaluation/documents.csv", keep_default_na=False)
    assert documents["task"].tolist() == tasks
    assert (documents["best"] == "").tolist() == [False, False, False, True, False]
    assert (documents["task_posterior"] == "").tolist() == [False, True, True, True, True]
    assert pd.read_csv("evaluation/per_task.csv")["task"].tolist() == ["a"]


def test_accuracy_has_wilsons_interval_and_is_compared_with_chance():
    found = measure_accuracy(["a", "a", "b", "a"], ["a", "a", "b", "b"], 5)
    assert (found["accuracy"], found["macro_accuracy"]) == (0.75, 0.75)
    assert (found["low"], found["high"]) == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson's interval for 3 of 4
    found = measure_accuracy(["a", "a", "a", "a"], ["a", "a", "a", "b"], 5)
    assert (found["accuracy"], found["macro_accuracy"], found["chance"], found["majority"]) == (0.75, 0.5, 0.2, 0.75)


def test_a_refused_evaluation_leaves_the_run_and_an_earlier_evaluation_unchanged(trained, run_evaluate, tmp_path):
    run = trained("tau=100")
    data = run.parent / "t.csv"
    assert run_evaluate(run, "--data", data, "--out", "evaluation")[0] == 0
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
        ([run, "--data", "unknown.csv", "--out", "x"], "no row belongs to a task of the run (the table has 'x'"),
        ([run, "--data", "empty.jsonl", "--out", "y"], "no row has a text with a token to score"),
        ([run, "--data", data, "--batch-size", "0"], "--batch-size: '0'"),
        ([run, "--data", data, "--out", "new.txt"], "new.txt cannot be written"),
        ([run, "--data", data, "--out", run], f"{run} holds a run"),
        (["nowhere", "--data", data], "no finished run"),
    ):
        code, out, err = run_evaluate(*arguments)
        assert (code, "perplexity" in out) == (2, False), arguments
        assert err.startswith(("bora: ", "usage: "))
        assert message in err.splitlines()[-1]
        assert content() == before


@pytest.fixture(scope="session")
def calibrated(trained):
    """Train a run long enough for fitting a temperature."""
    return trained("tau=1", "trainer.max_epochs=10", "optim.patience=10")


def rows_of(run, *splits) -> pd.DataFrame:
    """Return task and text of the run's own documents in these splits."""
    documents = pd.read_csv(run / "documents.csv", keep_default_na=False)
    documents = documents[documents["split"].isin(splits)]
    texts = pd.read_csv(run.parent / "t.csv", keep_default_na=False)["text"]
    return pd.DataFrame({"task": documents["task"].to_numpy(), "text": texts[documents["row"]].to_numpy()})


def test_the_temperature_minimises_the_log_loss_on_validation_documents(calibrated, run_evaluate, tmp_path):
    validation = rows_of(calibrated, "validation")
    validation.to_csv("v.csv", index=False)
    options = "--include-trained", "--likelihoods", "csv", "--out", "v"
    code, out, err = run_evaluate(calibrated, "--data", "v.csv", *options)
    assert code == 0
    n = len(validation)
    assert err == f"bora: the run was trained on the text of {n} rows of {n}: included in the figures\n"
    names = list(restore(calibrated).model.tasks)
    nats = pd.read_csv("v/likelihoods.csv")["log_likelihood"].to_numpy().reshape(n, -1)
    own = nats[np.arange(n), [names.index(task) for task in validation["task"]]]

    def log_loss(t: float) -> float:
        return (np.logaddexp.reduce(nats / t, axis=1) - own / t).mean()

    of_run, found = (json.loads((f / "summary.json").read_text()) for f in (calibrated, tmp_path / "v"))
    temperature = of_run["temperature"]
    best = min(log_loss(t) for t in np.geomspace(0.1, 1000, 2_001))
    assert log_loss(temperature) <= best + 1e-9
    assert of_run["temperature_note"] == f"fitted to {n} validation documents"
    # The evaluation uses it, and also reports what Bayes' rule gives without it.
    assert found["temperature"] == temperature
    shown = found["classification"]
    assert shown["log_loss"] == pytest.approx(best, rel=1e-4)
    assert shown["log_loss_at_1"] == pytest.approx(log_loss(1))
    assert shown["log_loss"] < shown["log_loss_at_1"]
    assert shown["guessing_log_loss"] == pytest.approx(np.log(3))
    posterior = np.exp(nats / temperature - np.logaddexp.reduce(nats / temperature, axis=1)[:, None])
    documents = pd.read_csv("v/documents.csv", keep_default_na=False)
    assert documents["posterior"].tolist() == pytest.approx(posterior.max(axis=1).tolist())
    assert documents["best"].tolist() == [names[d] for d in nats.argmax(axis=1)]
    mixture = (np.logaddexp.reduce(nats, axis=1) - np.log(3)).sum() / documents["n_scored"].sum()
    assert found["mixture_perplexity"] == pytest.approx(np.exp(-mixture))
    assert f"with temperature {temperature:.3g} (fitted to {n} validation documents)" in out


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["tau=100"], "20 validation documents are needed, but a fifth of training's forwards is enough only for 3"),
        (["tau=inf"], "all tasks share one model"),
    ],
)
def test_the_reason_for_a_missing_temperature_is_reported(trained, run_evaluate, overrides, why):
    run = trained(*overrides)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["temperature"], summary["temperature_note"]) == (None, f"not fitted: {why}")
    rows_of(run, "test").to_csv("new.csv", index=False)
    code, out, _ = run_evaluate(run, "--data", "new.csv", "--out", "x")
    assert code == 0
    assert f"(temperature not fitted: {why}); guessing: log loss 1.099" in " ".join(out.split())


def test_rows_that_were_trained_on_are_left_out(trained, run_evaluate, tmp_path):
    run = trained("tau=100")
    test, trained_on = rows_of(run, "test"), rows_of(run, "train", "validation")
    test = test[~test["text"].isin(trained_on["text"])]
    # A text that another task was trained on is not new, either.
    trained_on.loc[0, "task"] = "a longer name"
    pd.concat([trained_on, test]).to_csv("all.csv", index=False)
    test.to_csv("test.csv", index=False)
    trained_on.to_csv("trained.csv", index=False)
    code, out, err = run_evaluate(run, "--data", "all.csv", "--out", "all")
    left_out = "left out of the figures; documents.csv lists them"
    n = len(trained_on)
    assert (code, err) == (0, f"bora: the run was trained on the text of {n} rows of {n + len(test)}: {left_out}\n")
    code, alone, err = run_evaluate(run, "--data", "test.csv", "--out", "test")
    assert (code, err) == (0, "")
    assert out.splitlines()[1:-1] == alone.splitlines()[1:-1]  # all except the number of documents and the folder
    ours, theirs = (json.loads((tmp_path / f / "summary.json").read_text()) for f in ("all", "test"))
    assert ours["documents"]["trained_on"] == n
    assert theirs["documents"]["trained_on"] == 0
    for key in ("perplexity", "mixture_perplexity", "classification"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-6)
    assert pd.read_csv("all/documents.csv")["trained_on"].tolist() == [True] * n + [False] * len(test)
    refused = run_evaluate(run, "--data", "trained.csv", "--out", "trained")
    assert refused[0] == 2
    assert "the run was trained on every one of these texts; give others, or --include-trained" in refused[2]
    assert run_evaluate(run, "--data", "trained.csv", "--out", "trained", "--include-trained")[0] == 0


def test_columns_default_to_the_runs_own_if_the_table_has_them(trained, run_evaluate, tmp_path):
    named = pd.read_csv(trained("tau=100").parent / "t.csv").rename(columns={"task": "who", "text": "what"})
    named.to_csv("named.csv", index=False)
    run = trained(f"data.path={tmp_path}/named.csv", "data.task=who", "data.text=what")
    new = pd.DataFrame({"who": ["a", "a"], "what": ["order in the house", "a new law"], "task": "x", "text": "y"})
    new.to_csv("own.csv", index=False)
    new[["who", "what"]].set_axis(["task", "text"], axis=1).to_csv("plain.csv", index=False)
    for name in ("own", "plain"):
        code, _, err = run_evaluate(run, "--data", f"{name}.csv", "--out", name)
        assert (code, err) == (0, "")
    ours, theirs = (pd.read_csv(f"{name}/documents.csv") for name in ("own", "plain"))
    pd.testing.assert_frame_equal(ours, theirs)
    new.drop(columns=["what", "text"]).to_csv("neither.csv", index=False)
    code, _, err = run_evaluate(run, "--data", "neither.csv")
    assert code == 2
    assert "--text what: there is no such column; the table has who, task" in err


def test_an_evaluation_is_written_in_its_run_and_never_over_another(trained, run_evaluate, tmp_path, call):
    for name in ("one", "two"):
        shutil.copytree(trained("tau=100"), tmp_path / name)
    pd.DataFrame({"task": ["a"], "text": ["order in the house"]}).to_csv("new.v2.csv.gz", index=False)
    before = call(ls.main, tmp_path)
    for _ in range(2):  # the same evaluation is replaced
        code, out, err = run_evaluate("one", "--data", "new.v2.csv.gz")
        assert (code, err) == (0, "")
        assert f"evaluation: {tmp_path}/one/evaluation/new.v2\n" in out
    (tmp_path / "one").rename("six")
    assert run_evaluate("six", "--data", "new.v2.csv.gz")[0] == 0
    assert run_evaluate("two", "--data", "new.v2.csv.gz", "--out", "out")[0] == 0
    pd.DataFrame({"task": ["a"], "text": ["order in this house"]}).to_csv("new.v2.csv", index=False)
    Path("mine").mkdir()
    Path("mine/documents.csv").write_text("my own\n")
    for arguments, said in (
        (["six", "--data", "new.v2.csv"], "six/evaluation/new.v2 holds an evaluation of other rows; remove it"),
        (["two", "--data", "new.v2.csv", "--out", "out"], "out holds an evaluation of other rows"),
        (["six", "--data", "new.v2.csv.gz", "--out", "out"], "out holds an evaluation of another run"),
        (["two", "--data", "new.v2.csv", "--out", "mine"], "mine holds documents.csv; remove them"),
    ):
        code, _, err = run_evaluate(*arguments)
        assert code == 2
        assert said in err
    assert Path("mine/documents.csv").read_text() == "my own\n"
    # Commands that read runs skip evaluations.
    assert call(ls.main, tmp_path)[1].replace("six", "one") == before[1]
    assert run_folders(tmp_path) == [tmp_path / "six", tmp_path / "two"]
    assert RunDirectory(tmp_path / "six").verify() == []
