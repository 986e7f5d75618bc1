"""bora.fit, load and sweep give the same as the commands; a run's attributes equal its files and commands' output."""

import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

import bora
from bora.api.frames import documents
from bora.api.settings import KEYS, to_overrides, to_word
from bora.commands import adapt, evaluate, export, generate
from bora.config.compose import compose_config
from bora.config.schema import flatten
from bora.data.columns import Columns
from bora.data.table import read
from bora.errors import UserError
from bora.model.pretrained import load_packaged
from bora.runs.directory import RunDirectory
from tests.conftest import TASKS, table

SMALL = {"min_documents": 5, "max_tokens": 20, "max_epochs": 1, "rank": 2}
COLUMNS = {"task": "who", "text": "said"}
A, MEAN = "a longer name", "Θ, the hierarchical mean"


@pytest.fixture
def frame(tmp_path, monkeypatch) -> pd.DataFrame:
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    path = table(tmp_path / "t.csv", {"a": 24, "b": 40})
    return pd.read_csv(path).rename(columns={"task": "who", "text": "said"})


@pytest.fixture
def run(trained) -> bora.Run:
    """Return a run on TASKS."""
    return bora.load(trained())


@pytest.fixture
def speeches(tmp_path) -> pd.DataFrame:
    """Return new documents of TASKS, also written to new.csv."""
    return pd.read_csv(table(tmp_path / "new.csv", dict.fromkeys(TASKS, 4), seed=1))


def test_a_model_that_is_not_a_name_and_a_prompt_that_is_not_a_text_are_refused(frame, run):
    with pytest.raises(UserError, match="model takes a name or a folder, not a OPTForCausalLM"):
        bora.fit(frame, **COLUMNS, model=run.model.backbone.model)
    for prompt in (None, 3, b"bytes"):
        with pytest.raises(UserError, match="give a text to continue, not "):
            run.generate(prompt)
    for ask in (run.generate, run.who_wrote):
        with pytest.raises(UserError, match="surrogate"):
            ask("cut in two \ud83d")


def test_adapt_takes_numbers_of_numpy(run, speeches, tmp_path):
    adapted = run.adapt(speeches, tmp_path / "new", epochs=np.int64(1), tau=np.float64(3), batch_size=np.int32(4))
    assert (adapted.summary["epochs"], adapted.tau) == (1, 3)


@pytest.mark.parametrize(
    "mode",
    [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["inference", "no_grad", "autocast"],
)
def test_a_run_is_the_same_in_any_torch_mode_of_the_caller(frame, mode):
    plain = bora.fit(frame, **SMALL, **COLUMNS, output="plain").summary
    with mode():
        found = bora.fit(frame, **SMALL, **COLUMNS, output="in a mode").summary
    assert found["test_perplexity"] == plain["test_perplexity"]


def test_a_frame_trains_as_its_table_does(frame, command, tmp_path):
    torch.manual_seed(7)
    drawn = torch.get_rng_state()
    with pytest.raises(UserError):
        bora.fit(frame.head(1), **SMALL, **COLUMNS, tau=50, output="refused")
    found = bora.fit(frame, **SMALL, **COLUMNS, tau=50, output="python", overrides=["optim.patience=3"])
    assert torch.equal(torch.get_rng_state(), drawn)  # the caller's state is unchanged
    frame.to_csv("again.csv", index=False)
    settings = ["tau=50", "data.min_documents=5", "data.max_tokens=20", "trainer.max_epochs=1", "lora.rank=2"]
    columns = ["data=table", "data.path=again.csv", "data.task=who", "data.text=said"]
    code, _, _ = command(*settings, *columns, "optim.patience=3", "logger=none", "hydra.run.dir=command")
    assert code == 0
    for name in ("per_task.csv", "documents.csv"):
        assert (tmp_path / "python" / name).read_text() == (tmp_path / "command" / name).read_text()
    assert found.tasks == ["b", "a"]
    assert found.config.optim.patience == 3


def test_fit_takes_arrow_tables_and_model_folders(frame, tmp_path):
    pretrained = load_packaged("opt_mini")
    pretrained.model.save_pretrained(tmp_path / "a model")
    pretrained.tokenizer.save_pretrained(tmp_path / "a model")
    folder, arrow = str(tmp_path / "a model"), pa.Table.from_pandas(frame)
    found = bora.fit(arrow, **SMALL, **COLUMNS, model=folder, output="one", overrides=["model.dtype=float32"])
    same = bora.fit(frame, **SMALL, **COLUMNS, output="two")
    assert torch.equal(found.model.adapters.mean, same.model.adapters.mean)


def test_another_frame_is_refused_in_a_finished_runs_folder(frame):
    options = {**SMALL, **COLUMNS, "output": "run"}
    first = bora.fit(frame, **options)
    again = bora.fit(frame, **options)
    assert again.summary == first.summary
    with pytest.raises(UserError, match=r"other settings \(data\.sha256\)"):
        bora.fit(frame.iloc[1:], **options)


def test_each_keyword_is_one_setting_of_conf():
    config = flatten(compose_config(["data=frame"])[0].model_dump())
    assert set(KEYS.values()) <= set(config)
    given = {"n_tasks": None, "lr": 1e-5, "rank": np.int64(3), "device": "auto"}
    words = ["++data.n_tasks=null", "++optim.lr=1e-05", "++lora.rank=3", "++trainer.accelerator='auto'"]
    assert list(to_overrides(given)) == words
    with pytest.raises(UserError, match="no keyword max_epoch; did you mean max_epochs"):
        list(to_overrides({"max_epoch": 3}))


@pytest.mark.processes
def test_a_sweep_equals_the_commands(frame, command, tmp_path):
    frame.to_csv("again.csv", index=False)
    settings = ["tau=0,inf", "seed=0,1", "data.min_documents=5", "data.max_tokens=20", "trainer.max_epochs=1"]
    columns = ["data=table", "data.path=again.csv", "data.task=who", "data.text=said", "lora.rank=2"]
    command("-m", *settings, *columns, "logger=none", "hydra.sweep.dir=command")
    options = {**SMALL, **COLUMNS, "seeds": [0, 1], "output": "python"}
    with pytest.raises(UserError, match="tau=-1"):
        bora.sweep(frame, [0, -1], **options)
    assert not (tmp_path / "python").exists()  # all settings are checked before the first job
    with pytest.raises(UserError, match=r"a list: tau=\['learn'\]"):
        bora.sweep(frame, "learn", **options)
    with pytest.raises(UserError, match=r"a list: seeds=\[2\]"):
        bora.sweep(frame, [0], **{**options, "seeds": 2})
    found = bora.sweep(frame, iter([0, math.inf]), **{**options, "seeds": iter([0, 1])})
    loaded = bora.load("command")
    assert [run.folder.name for run in found.runs] == [run.folder.name for run in loaded.runs]
    assert found.table.drop(columns="run").equals(loaded.table.drop(columns="run"))
    by_hand = found.table.groupby("tau")["val_perplexity"].mean()
    assert found.best_tau == loaded.best_tau == by_hand.idxmin()
    chosen = found.table[found.table["tau"] == found.best_tau]
    assert found.best.summary["val_perplexity"] == chosen["val_perplexity"].min()
    before = (tmp_path / "python/tau=0,seed=1/metrics.csv").stat().st_mtime_ns
    again = bora.sweep(frame, [0], **options)  # already finished
    assert (tmp_path / "python/tau=0,seed=1/metrics.csv").stat().st_mtime_ns == before
    assert repr(again).startswith("Sweep('python': 2 runs, τ = 0 is best")
    assert "<td>∞</td>" in found._repr_html_()
    bora.fit(frame, **{**SMALL, "rank": 1}, **COLUMNS, tau=0, output="python/other")
    with pytest.raises(UserError, match=r"several experiments.*lora.rank=1"):
        _ = bora.load("python").best


def test_a_prompt_keeps_every_character_that_was_given():
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice([*"\\'\"${}[],:=na "], 12)) for _ in range(30)]
    for text in ("\\item {a}: \\nabla ", "${x} \\${y}", "C:\\data\\", *texts):
        assert compose_config(["data=frame", f"++data.prompt={to_word(text)}"])[0].data.prompt == text
    for typed, meant in (
        (r"x \alpha {a}: ", r"x \alpha {a}: "),
        (r"'x \alpha {a}\n'", "x \\alpha {a}\n"),
        ("It's {it's} \\d", "It's {it's} \\d"),
        (r"'Customer's question: {q}\nReply: '", "Customer's question: {q}\nReply: "),
        ("'Price: ${cost}'", "Price: ${cost}"),
    ):
        assert compose_config([f"data.prompt={typed}"])[0].data.prompt == meant
    config, folder = compose_config(["name=2020_21", "data.task=1e5", "data=frame", "hydra.run.dir=~/x"])
    assert (config.name, config.data.task, folder) == ("2020_21", "1e5", Path("~/x").expanduser())


def test_a_failed_job_does_not_stop_the_others(frame, tmp_path):
    options = {**SMALL, **COLUMNS, "output": "python"}
    with RunDirectory(tmp_path / "python/tau=0,seed=0").locked():
        with pytest.raises(UserError, match=r"^tau=0,seed=0: another process"):
            bora.sweep(frame, [0], **options)
        found = bora.sweep(frame, [0, 5], **options)
    assert [run.tau for run in found.runs] == [5]
    assert len(found.failures) == len(bora.load("python").failures) == 1
    assert "another process is working" in found._repr_html_()


def test_a_runs_attributes_equal_its_files(run):
    assert run.per_task.equals(run.restored.directory.per_task())
    assert set(run.tasks) == set(TASKS)
    assert run.summary["tau"] == run.tau == 100
    counts = run.documents.groupby(["task", "split"]).size().unstack()
    assert counts.loc[run.tasks, "train"].tolist() == run.per_task["n_train"].tolist()
    assert repr(run).startswith(f"Run('{run.folder}': τ = 100, 3 tasks, perplexity ")
    page = run._repr_html_()
    assert "../b | &lt;i&gt;*x*" in page
    assert f"{run.summary['base_test_perplexity']:.2f}" in page
    assert run.lora(A).keys() == run.mean.keys()
    for layer, (factor, _) in run.lora(A).items():
        assert torch.equal(factor, run.model.tasks[A][layer].A)
    with pytest.raises(UserError, match="did you mean a longer name"):
        run.lora("the longer name")


def test_scores_leave_out_rows_that_were_trained_on(frame, tmp_path, caplog):
    run = bora.fit(frame, **SMALL, **COLUMNS, tau=100, output="r")
    new = frame.head(4).assign(said=frame["said"].head(4) + " but new")
    held_out = run.documents.query("split == 'test'")["row"]
    both = pd.concat([frame.iloc[held_out], new])
    assert run.score(pd.concat([frame, new])).equals(run.score(both))
    assert f"{len(frame) - len(held_out)} of {len(frame) + 4} rows, whose text the run was trained on" in caplog.text
    new, every = run.score(frame), run.score(frame, include_trained=True)
    assert new["n_documents"].sum() == len(held_out) < every["n_documents"].sum()


def test_history_has_each_validated_epoch_once(trained):
    run = bora.load(trained("trainer.max_epochs=3", "trainer.log_every_n_steps=1"))
    history = run.history
    assert history["epoch"].tolist() == [1, 2, 3]
    best = history.loc[history["val/nll"].idxmin()]
    assert best["epoch"] == run.summary["best_epoch"]
    assert best["val/perplexity"] == pytest.approx(run.summary["val_perplexity"], rel=1e-6)
    assert history["train/nll"].is_monotonic_decreasing


def test_voices_equal_the_commands_answers(run, call):
    how = "--mean --prompt the --prompt for --max-new-tokens 5 --json".split()
    answers = [json.loads(line) for line in call(generate.main, run.folder, "--task", A, *how)[1].splitlines()]
    voices = run.generate(["the", "for"], A, mean=True, max_new_tokens=5)
    assert list(voices.columns) == [A, MEAN]
    assert voices.to_numpy().ravel().tolist() == [answer["text"] for answer in answers]
    assert voices.loc["for", MEAN] == answers[3]["text"]
    assert "flex" in voices._repr_html_()
    assert f"--- {A}\nthe{answers[0]['text']}" in repr(voices)
    several = run.generate("the", base=True, do_sample=True, num_return_sequences=2, max_new_tokens=3)
    assert several.shape == (2, 4)
    with pytest.raises(UserError, match="top_k"):
        run.generate("the", top_k=-1)


def test_scores_and_writers_equal_the_evaluations(run, speeches, call, tmp_path):
    code, _, _ = call(evaluate.main, run.folder, "--data", tmp_path / "new.csv", "--out", tmp_path / "evaluation")
    assert code == 0
    scores = run.score(speeches)
    pd.testing.assert_frame_equal(pd.DataFrame(scores), pd.read_csv(tmp_path / "evaluation/per_task.csv"))
    overall = json.loads((tmp_path / "evaluation/summary.json").read_text())["perplexity"]
    assert scores.overall == pytest.approx(overall)
    assert f"{overall['mean_model_perplexity']:.2f} with Θ" in scores._repr_html_()
    theirs = pd.read_csv(tmp_path / "evaluation/documents.csv", keep_default_na=False)
    found = run.who_wrote(speeches["text"])
    assert found["best"].tolist() == theirs["best"].tolist()
    np.testing.assert_allclose(found["posterior"], theirs["posterior"].astype(float))
    np.testing.assert_allclose(found[run.tasks].sum(axis=1), 1)
    for problem, call in {
        "prior='uniforn'": lambda: run.who_wrote("a", prior="uniforn"),
        "batch_size=-1": lambda: run.who_wrote("a", batch_size=-1),
        "batch_size=0": lambda: run.score(speeches, batch_size=0),
        "epochs=2.5": lambda: run.adapt(speeches, "adapted", epochs=2.5),
        "epochs=0": lambda: run.adapt(speeches, "adapted", epochs=0),
        "lr=-1.0": lambda: run.adapt(speeches, "adapted", lr=-1.0),
        "who_wrote: there are no rows": lambda: run.who_wrote([]),
        "no prompt: give a text": lambda: run.generate(speeches),
        "the run has no task 7": lambda: run.generate("a", 7),
        "the run has no task 8": lambda: run.export(tmp_path / "peft", [8]),
        "max_new_token: there is no such option": lambda: run.generate("a", max_new_token=3),
    }.items():
        with pytest.raises(UserError, match=problem):
            call()
    assert run.who_wrote(pd.Series(["a b c", None]))["best"].tolist()[1] == ""
    assert run.who_wrote("").iloc[0][["best", A]].tolist() == ["", pytest.approx(math.nan, nan_ok=True)]
    with pytest.raises(UserError, match="1 rows of the frame name no task"):
        run.score(speeches.replace({"task": {"a": ""}}).tail(9))


def test_adapt_and_export_write_what_the_commands_write(run, speeches, call, tmp_path):
    speeches.to_csv(tmp_path / "new.csv", index=False)
    code, _, _ = call(adapt.main, run.folder, tmp_path / "theirs", "--data", tmp_path / "new.csv", "--epochs", 2)
    assert code == 0
    ours = run.adapt(speeches, tmp_path / "ours", epochs=2)
    for name in ("per_task.csv", "summary.json"):
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "theirs" / name).read_text()
    assert "validation" not in ours._repr_html_()
    call(export.main, run.folder, tmp_path / "theirs/peft", "--task", A)
    folder = run.export(tmp_path / "peft", A)
    names = sorted(f.relative_to(folder) for f in folder.rglob("*") if f.is_file())
    assert names
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "theirs/peft" / name).read_bytes()


def test_a_run_has_a_report_and_a_figure_of_similarities(run, tmp_path):
    page = run.report(tmp_path / "report")
    assert page.path == tmp_path / "report/index.html"
    assert "srcdoc" in page._repr_html_()
    figure = run.similarity({"a": "short", A: "long"})
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {"short", "long", "(none)"}
    assert len(figure.axes[0].get_yticklabels()) == len(TASKS)  # one name for each task


@pytest.mark.processes
def test_the_package_lists_its_names_without_importing_torch():
    code = "import bora, sys; print('torch' in sys.modules, 'pandas' in sys.modules, *dir(bora))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert shown == ["False", "False", "Run", "Sweep", "UserError", "__version__", "fit", "load", "sweep"]
    assert all(getattr(bora, name) for name in bora.__all__)


def test_arrow_integers_stay_integers_if_some_are_missing(tmp_path):
    tasks = pa.array([2**53, 2**53 + 1, None, 7])
    arrow = pa.table({"task": tasks, "text": ["a", "b", "c", "d"], "n": pa.array([1.0, None, 0.1, 1e16])})
    pa.parquet.write_table(arrow, tmp_path / "t.parquet")
    for given in (arrow, arrow.combine_chunks().to_batches()[0], datasets.Dataset(arrow)):
        found = documents(given, Columns())
        assert found["task"].tolist() == ["9007199254740992", "9007199254740993", "", "7"]
        pd.testing.assert_frame_equal(found, read(str(tmp_path / "t.parquet")))
    labels = datasets.Features({"task": datasets.ClassLabel(names=["x", "y"]), "text": datasets.Value("string")})
    labelled = datasets.Dataset.from_dict({"task": [1, 0], "text": ["a", "b"]}, features=labels)
    assert documents(labelled, Columns())["task"].tolist() == ["y", "x"]
    numbers = documents(arrow, Columns("n"))["task"].tolist()
    assert numbers == ["1.0", "", "0.1", "1e+16"]
    assert numbers == documents(arrow.to_pandas(), Columns("n"))["task"].tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output": "t.csv"}, "output=t.csv is a file"),
        ({"tau": -1}, "tau=-1"),
        ({"max_epochs": "four"}, "trainer.max_epochs=four must be"),
        ({"model": "no/such model"}, "no causal language model"),
        ({"overrides": ["lora.rankk=3"]}, "rankk"),
        ({"overrides": "lora.rank=3"}, r"overrides=\['lora.rank=3'\]"),
    ],
)
def test_unusable_input_is_a_user_error(frame, change, said):
    with pytest.raises(UserError, match=said):
        bora.fit(frame, **(SMALL | COLUMNS | change))
