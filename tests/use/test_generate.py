"""What tasks say side by side is what a merged model of each says alone."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import bora
from bora.errors import UserError
from bora.model.loading import load_backbone
from bora.use import generate as command_line
from bora.use.generate import generate
from bora.use.restore import Restored, restore
from tests.conftest import merged, table

PROMPTS = ["the minister", "this law today and tomorrow asks for", "a vote"]
# Large steps, so that the tasks have something to disagree about.
TRAINING = [
    "data=table",
    "data.path=t.csv",
    "data.min_documents=5",
    "data.max_tokens=24",
    "trainer.max_epochs=1",
    "optim.lr=0.05",
    "hydra.run.dir=run",
    "logger=none",
]


@pytest.fixture
def run(command, tmp_path):
    """Train a run of tasks a and b/c with these overrides more; restored, in float64 so that no two tokens tie."""

    def train(*overrides: str) -> Restored:
        table(tmp_path / "t.csv", {"a": 24, "b/c": 40})
        code, _, err = command(*TRAINING, *overrides)
        assert code == 0, err
        restored = restore(tmp_path / "run")
        restored.model.double()
        return restored

    return train


@pytest.fixture
def line(call):
    """`bora generate ARGUMENTS`: exit code, standard output, standard error."""
    return partial(call, command_line.main)


def alone(restored: Restored, lora: dict | None, ids: list[int], n: int = 12, **options) -> list[int]:
    """What a model of one task, its LoRA merged into its weights, adds to one unpadded prompt."""
    model = load_backbone(restored.cfg.model, "cpu", 24).model.double()
    if lora is not None:
        model = merged(model, lora, restored.model.backbone.scale)
    ids = torch.tensor([ids])
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=n, do_sample=False, **options)
    return out[0, ids.shape[1] :].tolist()


def loras(restored: Restored) -> dict:
    """The LoRA of each speaker's kind and task."""
    tasks = {("task", name): lora for name, lora in restored.model.tasks.items()}
    return tasks | {("mean", None): restored.model.mean, ("base", None): None}


@pytest.mark.parametrize(
    "overrides", [["tau=0"], ["tau=100"], ["tau=100", "prior.parameterization=centered"], ["tau=inf"]]
)
def test_greedy_answers_are_those_of_merged_models(run, overrides):
    restored = run(*overrides)
    answers = generate(restored, ["b/c", "a"], PROMPTS, mean=True, base=True, max_new_tokens=12)
    assert [(a.prompt, a.speaker.kind, a.speaker.task) for a in answers] == [
        (p, *who) for p in PROMPTS for who in (("task", "b/c"), ("task", "a"), ("mean", None), ("base", None))
    ]
    said = loras(restored)
    for answer in answers:
        ids = [2, *restored.tokenizer(answer.prompt, add_special_tokens=False).input_ids]
        theirs = alone(restored, said[answer.speaker.kind, answer.speaker.task], ids)
        assert answer.ids == [i for i in theirs if i != 2]
        assert answer.text == restored.tokenizer.decode(answer.ids)
        assert answer.ended == (2 in theirs)
    if overrides[0] != "tau=inf":
        assert {a.text for a in answers[:3]} > {answers[0].text}


def test_rotary_positions_are_right_behind_padding(run, tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        eos_token_id=2,
        bos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    assets = Path(bora.__file__).parent / "assets/opt_mini"
    AutoTokenizer.from_pretrained(assets).save_pretrained(tmp_path / "llama")
    restored = run("model=opt_350m", "model.path=./llama", "model.dtype=float32", "lora.target_modules=all-linear")
    answers = generate(restored, ["a", "b/c"], PROMPTS, max_new_tokens=12)
    assert len({len(restored.tokenizer(p).input_ids) for p in PROMPTS}) > 1  # else nothing is padded
    for answer in answers:
        theirs = alone(restored, restored.model.tasks[answer.speaker.task], restored.tokenizer(answer.prompt).input_ids)
        assert answer.ids == [i for i in theirs if i != 2]
    assert answers[0].ids != answers[1].ids


def test_a_prompt_begins_as_trainings_documents_do(run):
    restored = run(
        "data.prompt=' [task] {task}'",
        "data.template=' [text] {text}'",
        "data.append_eos=true",
        "data.prepend_bos=false",
    )
    answers = generate(restored, ["a", "b/c"], PROMPTS, mean=True, base=True, max_new_tokens=12, repetition_penalty=1.7)
    assert len(answers) == len(PROMPTS) * 6  # the name stands in the prompt: Θ and backbone under each
    encode = lambda text: restored.tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    for answer in answers:
        name = answer.speaker.task
        ids = encode(f" [task] {name}") + encode(f" [text] {answer.prompt}")
        lora = {"task": restored.model.tasks[name], "mean": restored.model.mean, "base": None}
        theirs = alone(restored, lora[answer.speaker.kind], ids, repetition_penalty=1.7)
        assert answer.ids == theirs[: theirs.index(2) if 2 in theirs else None]
    with pytest.raises(UserError, match="names the task; give the name"):
        generate(restored, [], PROMPTS, base=True)


def test_drawn_answers_keep_their_task_and_their_seed(run):
    restored = run()
    greedy = generate(restored, ["a", "b/c"], PROMPTS, max_new_tokens=8)
    options = {"max_new_tokens": 8, "do_sample": True, "num_return_sequences": 3}
    # Of the likeliest token alone: what is drawn is known.
    for batch_size in (64, 4):
        drawn = generate(restored, ["a", "b/c"], PROMPTS, top_k=1, batch_size=batch_size, **options)
        assert [d.ids for d in drawn] == [g.ids for g in greedy for _ in range(3)]
        assert [d.sequence for d in drawn] == [0, 1, 2] * len(greedy)
    texts = [[a.text for a in generate(restored, ["a"], PROMPTS, seed=s, **options)] for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) > len(PROMPTS)


def test_an_answer_stops_at_its_end(run):
    restored = run()
    before = generate(restored, ["a", "b/c"], PROMPTS, max_new_tokens=12)
    end = before[0].ids[5]
    restored.tokenizer.eos_token = restored.tokenizer.convert_ids_to_tokens(end)
    after = generate(restored, ["a", "b/c"], PROMPTS, max_new_tokens=12)
    for whole, answer in zip(before, after, strict=True):
        assert answer.ids == whole.ids[: whole.ids.index(end) if end in whole.ids else None]
        assert answer.ended == (whole.ended or end in whole.ids)
    assert after[0].ended


def test_the_command_prints_names_or_json(run, line):
    run()
    code, out, err = line("run", "--task", "a", "--mean", "--prompt", "the law", "--max-new-tokens", "4")
    assert (code, err) == (0, "")
    assert "prompt: the law\n\n--- a\nthe law" in out
    assert "--- Θ, the hierarchical mean\nthe law" in out
    code, out, _ = line("run", "--task", "b/c", "--base", "--prompt", "the law", "--prompt", "", "--json")
    answers = [json.loads(one) for one in out.splitlines()]
    assert [(a["prompt"], a["kind"], a["task"]) for a in answers] == [
        ("the law", "task", "b/c"),
        ("the law", "base", None),
        ("", "task", "b/c"),
        ("", "base", None),
    ]
    for arguments, message in (
        (["--task", "nobody", "--prompt", "x"], "--task nobody: the run has no such task; it has"),
        (["--prompt", "x"], "give at least one --prompt"),
        (["--task", "a"], "give at least one --prompt"),
        (["--task", "a", "--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["--task", "a", "--prompt", "x", "--max-new-tokens", "255"], "256 positions"),
        (["--task", "a", "--prompt", "x", "--do-sample", "--top-p", "1.5"], "--top-p 1.5"),
        (["--task", "a", "--prompt", "x", "--do-sample", "--temperature", "nan"], "--temperature nan"),
        (["--task", "a", "--prompt", "x", "--temperature", "0.5"], "without --do-sample"),
        (["--task", "a", "--prompt", "x", "--num-return-sequences", "2"], "all of them would be the same"),
    ):
        code, out, err = line("run", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), arguments
        assert err.startswith("bora: ")
        assert message in err
    code, _, err = line("nowhere", "--task", "a", "--prompt", "x")
    assert (code, err.count("\n")) == (2, 1)
    assert "no finished run" in err
