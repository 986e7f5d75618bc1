"""New text under a run's models: the run's own figures again, and Bayes' rule done by loops."""

import gzip
import json
import os
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from scipy.stats import binomtest

from bora.errors import UserError
from bora.model.loading import load_backbone
from bora.use import evaluate as command_line
from bora.use.evaluate import evaluate
from bora.use.restore import restore
from bora.use.score import accuracy, likelihoods, log_prior, wilson
from bora.use.texts import read_texts
from tests.conftest import merged, table

SIZES = {"a": 24, "a longer name": 40, "c/d": 30}
TRAINING = [
    "data=table", "data.min_documents=5", "data.max_tokens=24", "trainer.max_epochs=1", "optim.lr=0.02",
    "hydra.run.dir=run", "logger=none",
]  # fmt: skip
NAMED = ["data.prompt=' [task] {task}'", "data.template=' [text] {text}'", "data.append_eos=true"]


@pytest.fixture
def run(command, tmp_path):
    """Train on t.csv with these overrides more."""

    def train(*overrides: str, path=None) -> None:
        path = path or table(tmp_path / "t.csv", SIZES)
        code, _, err = command(*TRAINING, f"data.path={path}", *overrides)
        assert code == 0, err

    return train


@pytest.fixture
def line(call):
    """`bora evaluate ARGUMENTS`: exit code, standard output, standard error."""
    return partial(call, command_line.main)


@pytest.mark.parametrize("overrides", [["tau=0"], [*NAMED, "tau=100"], ["tau=inf", "data.prepend_bos=false"]])
def test_the_runs_own_test_rows_have_the_runs_own_perplexities(run, line, tmp_path, overrides):
    run(*overrides)
    documents = pd.read_csv("run/documents.csv", keep_default_na=False)
    test = documents[documents["split"] == "test"]
    texts = pd.read_csv("t.csv", keep_default_na=False)["text"]
    pd.DataFrame({"who": test["task"], "what": texts[test["row"]].to_numpy()}).to_csv("new.csv", index=False)
    code, out, err = line("run", "--data", "new.csv", "--task", "who", "--text", "what")
    assert code == 0, err
    ours, theirs = (pd.read_csv(f"{folder}/per_task.csv") for folder in ("evaluation", "run"))
    assert ours["task"].tolist() == theirs["task"].tolist()
    assert ours["n_documents"].tolist() == theirs["n_test"].tolist()
    assert ours["n_tokens"].tolist() == theirs["test_tokens"].tolist()
    assert ours["perplexity"].tolist() == pytest.approx(theirs["test_perplexity"].tolist(), rel=1e-9)
    assert ours["nll"].tolist() == pytest.approx(theirs["test_nll"].tolist(), rel=1e-9)
    summary, of_run = (json.loads((tmp_path / f / "summary.json").read_text()) for f in ("evaluation", "run"))
    for key, name in (
        ("perplexity", "test_perplexity"),
        ("perplexity_macro", "test_perplexity_macro"),
        ("base_model_perplexity", "base_test_perplexity"),
    ):
        assert summary["perplexity"][key] == pytest.approx(of_run[name], rel=1e-9)
    assert f"{of_run['base_test_perplexity']:.2f}" in out
    if overrides[0] == "tau=inf":
        assert summary["perplexity"]["mean_model_perplexity"] == summary["perplexity"]["perplexity"]
        assert "what tells them apart is the prior" in err


@pytest.mark.parametrize("overrides", [["data.prepend_bos=false"], NAMED])
@pytest.mark.parametrize("prior", ["uniform", "documents"])
def test_the_posterior_is_that_of_a_loop_over_single_task_models(run, tmp_path, overrides, prior):
    run(*overrides)
    restored = restore(tmp_path / "run")
    restored.model.double()
    names = restored.model.adapters.task_names
    texts = ["the house today", "a vote", "minister " * 40, "asks for this law and tomorrow", "x"]
    found = evaluate(restored, pd.DataFrame({"task": ["", "a", "c/d", "a", "a"], "text": texts}), prior, 4)

    def ids(text: str) -> list[int]:
        return restored.tokenizer(text, add_special_tokens=False).input_ids

    named = overrides is NAMED
    prompts = [[2, *ids(f" [task] {name}")] if named else [] for name in names]
    room = 24 - max(map(len, prompts))
    nats = np.zeros((len(texts), len(names)))
    for d, name in enumerate(names):
        model = load_backbone(restored.cfg.model, "cpu", 24).model.double()
        model = merged(model, restored.model.tasks[name], restored.model.adapters.scale)
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
    some = (
        documents["n_scored"] > 0
    )  # "x" alone is one token, which nothing stands before without a beginning
    assert some.tolist() == [True, True, True, True, named]
    assert documents["best"].tolist()[:4] == [names[d] for d in posterior.argmax(axis=1)][:4]
    assert documents["posterior"][some].tolist() == pytest.approx(posterior.max(axis=1)[some], rel=1e-9)
    own = [np.nan, *(posterior[i, names.index(t)] for i, t in ((1, "a"), (2, "c/d"), (3, "a")))]
    assert documents["task_posterior"].tolist()[:4] == pytest.approx(own, rel=1e-9, nan_ok=True)
    evidence = np.log(np.exp(scores).sum(axis=1))[some].sum()
    tokens = documents["n_scored"].sum()
    assert found.mixture_perplexity == pytest.approx(np.exp(-evidence / tokens), rel=1e-9)
    same = likelihoods(restored, texts, 1000)
    assert same.nats == pytest.approx(nats, rel=1e-9)


def test_clearly_different_tasks_are_told_apart(run, line, tmp_path):
    words = {"sea": "ship wave harbour salt", "farm": "cow field wheat plough", "sky": "star cloud sun rain"}
    rng = np.random.default_rng(0)

    def corpus(n: int) -> pd.DataFrame:
        rows = [(t, " ".join(rng.choice(w.split(), 8))) for t, w in words.items() for _ in range(n)]
        return pd.DataFrame(rows, columns=["task", "text"])

    corpus(30).to_csv("big.csv", index=False)
    run("trainer.max_epochs=3", path=tmp_path / "big.csv")
    new = corpus(20)
    new.to_parquet("new.parquet")
    new[["text"]].to_csv("unlabelled.csv", index=False)
    code, out, err = line("run", "--data", "new.parquet", "--likelihoods", "parquet", "--out", "one")
    assert (code, err) == (0, "")
    summary = json.loads((tmp_path / "one/summary.json").read_text())
    found = summary["classification"]
    assert found["accuracy"] > 0.9
    assert (found["n"], found["chance"], found["majority"]) == (
        60,
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
    )
    documents = pd.read_csv("one/documents.csv", keep_default_na=False)
    assert (documents["best"] == documents["task"]).mean() == pytest.approx(found["accuracy"])
    assert -np.log(documents["task_posterior"]).mean() == pytest.approx(found["log_loss"])
    assert f"accuracy {found['accuracy']:.3f}" in out
    # Without labels the same is said of the same texts.
    code, out, err = line("run", "--data", "unlabelled.csv", "--likelihoods", "csv", "--out", "two")
    assert (code, err) == (0, "")
    assert "accuracy" not in out
    blind = pd.read_csv("two/documents.csv", keep_default_na=False)
    assert blind["best"].tolist() == documents["best"].tolist()
    assert not (tmp_path / "two/per_task.csv").exists()
    first, second = pd.read_parquet("one/likelihoods.parquet"), pd.read_csv("two/likelihoods.csv")
    assert (
        first["task"].tolist() == second["task"].tolist() == list(restore(tmp_path / "run").model.tasks) * 60
    )
    assert first["log_likelihood"].tolist() == pytest.approx(second["log_likelihood"].tolist())


def test_rows_that_are_left_out_are_told(run, line, tmp_path):
    run("data.prepend_bos=false")
    rows = [
        ("a", "the house today"),
        ("nobody", "a vote today"),
        ("", "this law"),
        ("c/d", ""),
        ("nobody", "for a"),
    ]
    pd.DataFrame(rows, columns=["task", "text"]).to_csv("new.csv", index=False)
    code, _, err = line("run", "--data", "new.csv")
    assert code == 0
    assert "2 rows are of 1 task(s) that the run does not have: 'nobody' (2)" in err
    assert "1 rows name no task" in err
    assert "1 rows have no token to score" in err
    assert json.loads((tmp_path / "evaluation/summary.json").read_text())["documents"] == {
        "rows": 5, "of_the_runs_tasks": 2, "unlabelled": 1, "without_a_token_to_score": 1,
        "unknown_tasks": {"nobody": 2},
    }  # fmt: skip
    documents = pd.read_csv("evaluation/documents.csv", keep_default_na=False)
    assert documents["task"].tolist() == [task for task, _ in rows]
    assert (documents["best"] == "").tolist() == [False, False, False, True, False]
    assert (documents["task_posterior"] == "").tolist() == [False, True, True, True, True]
    assert pd.read_csv("evaluation/per_task.csv")["task"].tolist() == ["a"]


def test_where_all_tasks_share_a_model_the_posterior_is_the_prior(run, tmp_path):
    run("tau=inf")
    restored = restore(tmp_path / "run")
    prior = log_prior(restored.model, "documents")
    n = restored.directory.per_task()["n_train"].to_numpy()
    assert np.exp(prior) == pytest.approx(n / n.sum())
    log_posterior, _ = likelihoods(restored, ["the house", "a vote today"], 2).posterior(prior)
    assert np.exp(log_posterior) == pytest.approx(np.exp([prior] * 2), rel=1e-4)


def test_accuracy_and_its_interval():
    for k, n in ((8, 10), (0, 5), (60, 60)):
        assert wilson(k, n) == pytest.approx(tuple(binomtest(k, n).proportion_ci(method="wilson")))
    found = accuracy(["a", "a", "b", "a"], ["a", "a", "b", "b"], 5)
    assert (found["accuracy"], found["macro_accuracy"]) == (0.75, 0.75)
    found = accuracy(["a", "a", "a", "a"], ["a", "a", "a", "b"], 5)
    assert (found["accuracy"], found["macro_accuracy"], found["chance"], found["majority"]) == (
        0.75,
        0.5,
        0.2,
        0.75,
    )


def test_every_format_gives_the_same_texts_without_a_column_of_tasks(tmp_path):
    texts = ['one,\n"two"', "NA", "007", "é 水\tx", ""]
    frame = pd.DataFrame({"said": texts, "n": range(5)})
    lines = "\n".join(json.dumps(record) for record in frame.to_dict("records")).encode()
    (tmp_path / "t.csv").write_text("\ufeff" + frame.to_csv(index=False))
    (tmp_path / "t.tsv").write_text(frame.to_csv(index=False, sep="\t"))
    (tmp_path / "t.jsonl").write_bytes(lines)
    (tmp_path / "t.ndjson.gz").write_bytes(gzip.compress(lines))
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv.zip", index=False)
    with pa.CompressedOutputStream(str(tmp_path / "t.tsv.zst"), "zstd") as out:
        out.write(frame.to_csv(index=False, sep="\t").encode())
    files = sorted(tmp_path.iterdir())
    assert len(files) == 7
    for file in files:
        found = read_texts(file, "said", None)
        assert found["text"].tolist() == texts, file
        assert found["task"].tolist() == [""] * 5
        labelled = read_texts(file, "said", "n")
        assert (labelled["text"].tolist(), labelled["task"].tolist()) == (texts, list("01234")), file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text\n"open\n', "a quote is opened and never closed"),
        ("text,x\none\n", "line 2 has 1 cells and the header 2"),
        ("text,text\na,b\n", "more than one such column"),
        ("text\n", "there are no rows"),
        ("other\na\n", "--text text"),
        ("", "empty"),
    ],
)
def test_a_table_that_cannot_be_read_is_told(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_texts(tmp_path / "t.csv", "text", None)


def test_bad_input_gives_one_line_and_exit_code_2(run, line, tmp_path):
    run()
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    os.mkfifo("pipe")
    before = {f: f.read_bytes() for f in tmp_path.glob("run/*.*") if f.is_file()}
    (tmp_path / "new.txt").write_text("text\na\n")
    pd.DataFrame({"task": ["x"], "text": ["the house"]}).to_csv("unknown.csv", index=False)
    pd.DataFrame({"text": [" ", ""]}).to_json("empty.jsonl", orient="records", lines=True)
    for arguments, message in (
        (["run", "--data", "nowhere.csv"], "--data nowhere.csv: there is no such file"),
        (["run", "--data", "~nobody-of-that-name/t.csv"], "there is no such file"),
        (["run", "--data", "x" * 300 + ".csv"], "there is no such file"),
        (["run", "--data", "folder"], "that is not a regular file"),
        (["run", "--data", "pipe"], "that is not a regular file"),
        (["run", "--data", "\x1b[31m.csv"], r"--data \x1b[31m.csv: there is no such file"),
        (["run", "--data", "new.txt"], "the ending '.txt' is not one of"),
        (["run", "--data", "t.csv", "--text", "speech"], "--text speech: there is no such column"),
        (["run", "--data", "t.csv", "--task", "who"], "--task who: there is no such column"),
        (["run", "--data", "unknown.csv"], "no row is of a task that the run has: there is 'x'"),
        (["run", "--data", "t.csv", "--batch-size", "0"], "--batch-size 0"),
        (["run", "--data", "t.csv", "--out", "file"], "file: nothing can be written there"),
        (["run", "--data", "t.csv", "--out", "run"], "--out run: a run is in that folder"),
        (["nowhere", "--data", "t.csv"], "no finished run"),
    ):
        code, out, err = line(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), (arguments, err)
        assert err.startswith("bora: ")
        assert message in err
    assert not list(tmp_path.glob("evaluation/*.csv"))
    assert {f: f.read_bytes() for f in tmp_path.glob("run/*.*") if f.is_file()} == before


def test_an_evaluation_that_is_refused_leaves_the_one_before(run, line, tmp_path):
    run()
    assert line("run", "--data", "t.csv")[0] == 0
    before = {f: f.read_bytes() for f in tmp_path.glob("evaluation/*")}
    pd.DataFrame({"task": ["x"], "text": ["the house"]}).to_csv("unknown.csv", index=False)
    assert line("run", "--data", "unknown.csv")[0] == 2
    assert {f: f.read_bytes() for f in tmp_path.glob("evaluation/*")} == before
