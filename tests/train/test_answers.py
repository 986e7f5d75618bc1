"""A run on prompts and responses, from the table to its use, recomputed with PEFT from only the table."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel

import bora
from bora.commands import adapt, evaluate, generate
from bora.model.pretrained import load_packaged
from bora.use.answers import score_answers
from bora.use.export import export
from tests.conftest import one_line

PROMPT = r"data.prompt='By {task}: {article}\nHeadline: '"
RUN = (
    "data=table data.path=t.csv data.text=headline data.min_documents=5 data.max_tokens=30 optim.lr=0.02 lora.rank=3 "
    "trainer.max_epochs=1 logger=none tau=10 hydra.run.dir=run"
).split()


@pytest.fixture
def pairs(tmp_path) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    words = "the house speaker asks for a vote on this law today".split()
    draw = lambda low, high: " ".join(rng.choice(words, rng.integers(low, high)))  # noqa: E731
    rows = [(task, draw(2, 40), draw(1, 6)) for task in "ab" for _ in range(16)]
    table = pd.DataFrame(rows, columns=["task", "article", "headline"])
    table.to_csv(tmp_path / "t.csv", index=False)
    return table


def recompute(run: Path, table: pd.DataFrame) -> float:
    """Compute the test perplexity from the table, PEFT's adapters and transformers' logits."""
    export(run, run / "peft", None, False)
    documents, nats, n = pd.read_csv(run / "documents.csv").query("split == 'test'"), 0.0, 0
    for task, rows in documents.groupby("task"):
        pretrained = load_packaged("opt_mini")
        folder = next(f.parent for f in (run / "peft").rglob("adapter_config.json") if f.parent.name == task)
        model, tokenizer = PeftModel.from_pretrained(pretrained.model, str(folder)).eval(), pretrained.tokenizer
        for row in table.loc[rows["row"]].to_dict("records"):
            prompt = tokenizer(f"By {task}: {row['article']}\nHeadline: ", add_special_tokens=False).input_ids
            answer = [*tokenizer(row["headline"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            room = 30 - 1 - len(answer)
            ids = torch.tensor([[tokenizer.bos_token_id, *prompt[max(0, len(prompt) - room) :], *answer]])
            with torch.no_grad():
                logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            nats, n = nats - float(logp[-len(answer) :].sum()), n + len(answer)
    return float(np.exp(nats / n))


def test_the_perplexity_of_responses_equals_pefts(command, pairs, tmp_path):
    code, out, _ = command(*RUN, PROMPT)
    assert code == 0
    assert "shortened: " in out
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["test_perplexity"] == pytest.approx(recompute(tmp_path / "run", pairs), rel=1e-5)
    assert summary["shortened_prompts"] > 0


def test_a_run_on_pairs_takes_prompts_in_every_command(command, call, pairs):
    assert command(*RUN, PROMPT)[0] == 0
    code, out, _ = call(generate.main, "run", "--task", "a", "--prompt", "the law", "--max-new-tokens", 3)
    assert (code, out.startswith("prompt: the law\n")) == (0, True)
    # A response that is repeated after another prompt is another document.
    known = pairs.assign(task=pairs["task"], headline=pairs["headline"])
    known.to_csv("known.csv", index=False)
    code, _, err = call(evaluate.main, "run", "--data", "known.csv", "--out", "e")
    assert code == 0
    trained = (pd.read_csv("run/documents.csv")["split"] != "test").sum()
    assert f"the run was trained on the text of {trained:,} rows of {len(pairs):,}" in err
    new = pairs.assign(article=pairs["article"] + " again")
    new.to_csv("new.csv", index=False)
    assert "was trained on" not in call(evaluate.main, "run", "--data", "new.csv", "--out", "e2")[2]
    new.assign(task="c").to_csv("c.csv", index=False)
    found = call(adapt.main, "run", "c", "--data", "c.csv", "--epochs", 1)
    assert found[0] == 0
    assert pd.read_csv("c/per_task.csv")["n_train"].tolist() == [len(new)]
    new.drop(columns="article").to_csv("less.csv", index=False)
    one_line(call(evaluate.main, "run", "--data", "less.csv"), "the run's data.prompt=", "{article}", "no such column")


def test_several_columns_are_given_as_json(command, call, pairs):
    pairs.assign(topic="law").to_csv("t.csv", index=False)
    assert command(*RUN, "data.prompt='{topic} {article}: '")[0] == 0
    given = json.dumps({"topic": "x", "article": "y"})
    assert call(generate.main, "run", "--task", "a", "--prompt", given, "--max-new-tokens", 2)[0] == 0
    one_line(call(generate.main, "run", "--task", "a", "--prompt", "y"), "give a JSON object with these keys")
    one_line(call(generate.main, "run", "--task", "a", "--prompt", '{"topic": "x"}'), "topic, article")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data.prompt='{headlin}'"], "data.prompt=… {headlin} …: there is no such column; the table has task, art"),
        (["data.messages=article", PROMPT], "data.messages=article holds whole chats, prompts included; remove data.p"),
        (["data.chat_template=true"], "give data.prompt"),
        (["data.chat_template=true", PROMPT], "data.chat_template: the tokenizer has no chat template"),
        (["data.messages=article"], "data.messages: the tokenizer has no chat template"),
        (["data.long=chunk", "data.overlap=16"], "data.overlap=16 is more than half"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_work(command, pairs, words, told):
    one_line(command(*RUN, *words), told)
    assert not Path("run").exists()


def test_python_trains_and_answers_on_pairs(pairs, tmp_path):
    prompt = "By {task}: {article}\nHeadline: "
    run = bora.fit(
        pairs, text="headline", prompt=prompt, tau=10, output=tmp_path / "run", max_epochs=1, min_documents=5
    )
    assert run.config.data.prompt == prompt
    voices = run.generate(["the law", "a vote"], ["a"], max_new_tokens=2)
    assert voices.shape == (2, 1)
    assert len(run.score(pairs)) == 2
    answers = run.answer(pairs, per_task=2, max_new_tokens=2)
    assert (answers["response"] == pairs.loc[answers.index, "headline"]).all()
    half = pairs.iloc[1::2]
    answers = run.answer(half, per_task=2, max_new_tokens=2)
    assert (answers["response"] == half.loc[answers.index, "headline"]).all()
    assert set(answers) == {"task", "prompt", "response", "under_task", "under_mean", "under_base"}
    assert run.who_wrote(pairs.head(2))["best"].isin(["a", "b"]).all()
    with pytest.raises(bora.UserError, match="have prompts"):
        run.who_wrote("a text")


def test_answers_equal_those_of_generate_and_the_evaluations_files_have_their_scores(command, call, pairs):
    assert command(*RUN, PROMPT)[0] == 0
    none = [word for word in RUN if not word.startswith("hydra")]
    assert command(*none, PROMPT, "tau=0", "hydra.run.dir=zero")[0] == 0
    new = pairs.assign(article=pairs["article"] + " again")
    new.to_csv("new.csv", index=False)
    words = ["--out", "e", "--answers", 3, "--beside", "zero", "--max-new-tokens", 4]
    code, out, _ = call(evaluate.main, "run", "--data", "new.csv", *words)
    assert code == 0
    assert "answers to 6 prompts" in out
    answers = pd.read_csv("e/answers.csv", keep_default_na=False)
    assert answers["task"].value_counts().to_dict() == {"a": 3, "b": 3}
    for row in answers.to_dict("records"):
        assert (row["prompt"], row["response"]) == tuple(new.loc[row["row"], ["article", "headline"]])
        for run, column, who in (
            ("run", "under_task", ["--task", row["task"]]),
            ("run", "under_base", ["--base", "--task", row["task"]]),
            ("zero", "under_zero", ["--task", row["task"]]),
        ):
            _, said, _ = call(generate.main, run, "--prompt", row["prompt"], *who, "--max-new-tokens", 4, "--json")
            assert json.loads(said.splitlines()[-1])["text"] == row[column]
    scores = pd.read_csv("e/answer_scores.csv", keep_default_na=False)
    ours = score_answers(answers)
    assert scores["under"].unique().tolist() == ["task", "mean", "base", "zero"]
    assert scores["chrf"].tolist() == pytest.approx(ours["chrf"].tolist())
    page = Path("e/answers.html").read_text()
    assert all(row["prompt"] in page for row in answers.to_dict("records"))
    means = json.loads(Path("e/summary.json").read_text())["answers"]
    by_task = ours.query("under == 'task' and task != 'all'")
    assert means["task"]["chrf"]["value"] == pytest.approx(by_task["chrf"].mean())


def test_a_run_on_plain_texts_has_no_prompts_to_answer(call, trained):
    run = trained("tau=100")
    pd.DataFrame({"task": ["a"], "text": ["a new text"]}).to_csv(run.parent / "new.csv", index=False)
    found = call(evaluate.main, run, "--data", run.parent / "new.csv", "--out", run.parent / "e", "--answers")
    assert found[0] == 2
    assert "no prompts to answer" in found[2].splitlines()[-1]


def test_impossible_comparisons_of_answers_are_refused_before_work(command, call, pairs):
    assert command(*RUN, PROMPT)[0] == 0
    pairs.assign(article=pairs["article"] + " again").to_csv("new.csv", index=False)
    for words, told in (
        (["--beside", "run"], "give --answers too"),
        (["--answers", "--beside", "a/r", "--beside", "b/r"], "must have different names"),
        (["--answers", "--beside", "base"], "must have different names"),
    ):
        one_line(call(evaluate.main, "run", "--data", "new.csv", *words), told)


def test_a_prompt_that_fills_the_model_leaves_room_for_its_answer(command, call, pairs):
    words = [word for word in RUN if not word.startswith("data.max_tokens")]
    assert command(*words, PROMPT, "data.max_tokens=256")[0] == 0
    pairs.assign(article="the law " * 300).head(1).to_csv("new.csv", index=False)
    assert call(evaluate.main, "run", "--data", "new.csv", "--answers", "--max-new-tokens", 3, "--out", "e")[0] == 0
