"""A task's characteristic tokens equal a loop over documents with full logits; its texts equal those of bora generate."""

import json
import math

import pandas as pd
import pytest
import torch

import bora
import bora.commands.generate
import bora.commands.report
import bora.commands.voices
from bora.runs.corpus import split_documents
from bora.use.restore import restore
from bora.use.voices import characteristic_tokens, show_token
from tests.conftest import TASKS, one_line, table
from tests.lib.test_escaping import Page, harmless
from tests.use.test_levels import run as levels  # noqa: F401

MEAN = "Θ, the hierarchical mean"


def log_probabilities(restored, ids, theta):
    with torch.no_grad(), restored.model.backbone.routed(theta):
        logits = restored.model.backbone.model(torch.tensor([ids])).logits[0, :-1]
    return logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]].tolist()


@pytest.mark.parametrize("how", ["tau=0", "tau=100", "levels"])
def test_the_tokens_contributions_add_up_to_the_gain(how, trained, request):
    run = request.getfixturevalue("levels") if how == "levels" else trained(how)
    restored = restore(run)
    model = restored.model.double()
    table = split_documents(restored.directory, "validation")
    found = characteristic_tokens(restored, table, batch_size=5)
    assert found["task"].unique().tolist() == model.adapters.task_names
    for task, rows in found.groupby("task"):
        theta = model.adapters.theta(model.adapters.task_names.index(task)).detach()
        items, n = {}, 0
        for text in table.loc[table["task"] == task, "text"]:
            ids = restored.tokenizer(text).input_ids[:20]
            ratios = [log_probabilities(restored, ids, t) for t in (theta, model.adapters.mean)]
            for token, own, mean in zip(ids[1:], *ratios, strict=True):
                items.setdefault(token, []).append(own - mean)
                n += 1
        assert rows["count"].sum() == n
        gain = sum(map(math.fsum, items.values())) / n
        assert rows["contribution"].sum() == pytest.approx(gain, abs=1e-6)
        assert abs(gain) > 1e-4
        expected = {token: math.fsum(ratios) / n for token, ratios in items.items()}
        assert dict(zip(rows["id"], rows["contribution"], strict=True)) == pytest.approx(expected, abs=1e-6)
        assert rows["contribution"].is_monotonic_decreasing


def test_white_space_in_tokens_is_made_visible(trained):
    restored = restore(trained("tau=100"))
    ids = restored.tokenizer(" the\n        the\tx", add_special_tokens=False).input_ids
    assert "".join(show_token(restored, i) for i in ids) == "␣the↵␣×7␣the⇥x"


def test_the_tasks_texts_equal_those_of_generate(trained, call):
    run = trained("tau=100")
    _, said = bora.load(run).voices("the law", max_new_tokens=8)
    who = ["--mean", *(word for task in TASKS for word in ("--task", task))]
    how = ["--max-new-tokens", 8, "--repetition-penalty", 1.2, "--json"]
    code, out, err = call(bora.commands.generate.main, run, *who, "--prompt", "the law", *how)
    assert (code, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert dict(zip(said["task"], said["text"], strict=True)) == {a["task"] or MEAN: a["text"] for a in answers}


def test_the_report_shows_the_files_that_the_command_writes(command, call, tmp_path):
    table(tmp_path / "t.csv", TASKS)
    data = "data=table data.path=t.csv data.min_documents=5 data.max_tokens=20 trainer.max_epochs=1 logger=none"
    assert command(*data.split(), "tau=100", "optim.lr=0.02", "hydra.run.dir=run")[0] == 0
    assert call(bora.commands.report.main, "run")[0] == 0
    assert "Voices" not in (tmp_path / "run/report/index.html").read_text("utf-8")
    assert call(bora.commands.voices.main, "run", "--tasks", "a lo")[0] == 0
    assert call(bora.commands.voices.main, "run", "-n", 1)[0] == 0  # no token is characteristic with one document
    prompt = "<script>the</script> law"
    code, out, err = call(bora.commands.voices.main, "run", "--prompt", prompt, "-n", 3)
    assert (code, err) == (0, "")
    assert all(f"│ {name}" in out for name in TASKS)
    folder = tmp_path / "run/voices"
    assert {f.name for f in folder.iterdir()} == {"tokens.csv", "continuations.csv", "summary.json"}
    assert set(pd.read_csv(folder / "continuations.csv")["task"]) == {*TASKS, MEAN}
    tokens = pd.read_csv(folder / "tokens.csv", keep_default_na=False)
    assert (set(tokens["task"]), tokens["documents"].max()) == (set(TASKS), 3)
    assert call(bora.commands.report.main, "run")[0] == 0
    page = (tmp_path / "run/report/index.html").read_text("utf-8")
    section = Page(page[page.rindex("Voices</h3>") :])
    harmless(section)
    assert prompt in section.text
    cells = [cell.strip() for cell in section.cells]
    assert cells[0] == MEAN
    assert set(cells) > {*TASKS}


def test_impossible_requests_are_refused_before_the_model_is_loaded(trained, call, tmp_path, monkeypatch):
    monkeypatch.setattr(bora.commands.voices, "restore", None)
    run = trained("tau=100")
    for arguments, words in (
        ([tmp_path], "no finished run"),
        ([trained("tau=inf")], "all tasks are Θ"),
        ([run, "--tasks", "nobody"], "the run has no task nobody; it has"),
        ([run, "--prompt", "two", "texts"], "--prompt: give one text, in quotes"),
    ):
        one_line(call(bora.commands.voices.main, *arguments), words)
    rows = pd.read_csv(run.parent / "t.csv")
    with pytest.raises(bora.UserError, match="the corpus has changed since the run"):
        bora.load(run).voices(frame=rows[::-1])


def test_a_prompt_is_given_as_a_text_or_as_the_cells_of_its_columns():
    read = bora.commands.voices.read_prompt
    assert read(["who=a text"], []) == "who=a text"
    assert read(["who=a = b", "what="], ["what", "who"]) == {"who": "a = b", "what": ""}
    with pytest.raises(bora.UserError, match="give what=CELL who=CELL"):
        read(["who=a", "b"], ["what", "who"])
