"""What tasks say side by side equals what each one's merged model says."""

import json
from functools import partial

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bora.commands import generate as command_line
from bora.errors import UserError
from bora.model.loading import load_backbone
from bora.use.generate import generate
from bora.use.restore import Restored, restore
from tests.conftest import TASKS, merged
from tests.model.test_architectures import CONFIGS
from tests.use.test_export import TOKENIZER

PROMPTS = ["the minister", "this law today and tomorrow asks for", "a vote"]
NAMES = list(TASKS)[:2]


@pytest.fixture
def model(trained):
    """Restore a run with these overrides, in float64 so that no two tokens tie."""

    def load(*overrides: str) -> Restored:
        restored = restore(trained(*(overrides or ["tau=100"])))
        restored.model.double()
        return restored

    return load


def alone(restored: Restored, lora: dict | None, ids: list[int], n: int = 12, **options) -> list[int]:
    """Continue a single unpadded prompt with a model that has this LoRA merged into its weights."""
    model = load_backbone(restored.cfg.model, "cpu", 20).model.double()
    if lora is not None:
        model = merged(model, lora, restored.model.backbone.scale)
    ids = torch.tensor([ids])
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=n, do_sample=False, **options)
    return out[0, ids.shape[1] :].tolist()


def lora_of(restored: Restored, kind: str, task: str | None) -> dict | None:
    return {"mean": restored.model.mean, "base": None}[kind] if kind != "task" else restored.model.tasks[task]


@pytest.mark.parametrize(
    "overrides", [["tau=0"], ["tau=100"], ["tau=100", "prior.parameterization=centered"], ["tau=inf"]]
)
def test_greedy_answers_equal_those_of_merged_models(model, overrides):
    restored = model(*overrides)
    answers = generate(restored, NAMES, PROMPTS, mean=True, base=True, max_new_tokens=12)
    speakers = [*(("task", name) for name in NAMES), ("mean", None), ("base", None)]
    assert [(a.prompt, *a.speaker) for a in answers] == [(p, *speaker) for p in PROMPTS for speaker in speakers]
    for answer in answers:
        ids = [2, *restored.tokenizer(answer.prompt, add_special_tokens=False).input_ids]
        theirs = alone(restored, lora_of(restored, *answer.speaker), ids)
        assert answer.ids == [i for i in theirs if i != 2]
        assert answer.text == restored.tokenizer.decode(answer.ids)
        assert answer.ended == (2 in theirs)
    if overrides[0] != "tau=inf":
        assert {a.text for a in answers[:3]} > {answers[0].text}


@pytest.mark.parametrize("architecture", ["llama", "recurrent_gemma", "rwkv"])
def test_an_answer_does_not_depend_on_the_batch(model, tmp_path, architecture):
    """Rotary positions start after the padding; RecurrentGemma and RWKV, which read padding, answer one row at a time."""
    torch.manual_seed(0)
    changes = {"bos_token_id": 2, "eos_token_id": 2, "vocab_size": 4096, "max_position_embeddings": 64}
    own = {"hidden_size": 16, "num_hidden_layers": 2} if architecture == "rwkv" else CONFIGS[architecture]
    config = AutoConfig.for_model(architecture, **own | changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(tmp_path)
    options = "model.dtype=float32", "lora.target_modules=all-linear"
    restored = model("model=opt_350m", f"model.path={tmp_path}", *options)
    answers = generate(restored, NAMES, PROMPTS, max_new_tokens=12)
    assert len({len(restored.tokenizer(p).input_ids) for p in PROMPTS}) > 1  # otherwise nothing is padded
    for answer in answers:
        theirs = alone(restored, lora_of(restored, *answer.speaker), restored.tokenizer(answer.prompt).input_ids)
        assert answer.ids == [i for i in theirs if i != 2]
    assert answers[0].ids != answers[1].ids


def test_a_prompt_begins_as_documents_do_in_training(model):
    texts = "data.prompt=' [task] {task}'", "data.template=' [text] {text}'"
    restored = model("tau=100", *texts, "data.append_eos=true", "data.prepend_bos=false")
    answers = generate(restored, NAMES, PROMPTS, mean=True, base=True, max_new_tokens=12, repetition_penalty=1.7)
    assert len(answers) == len(PROMPTS) * 6  # the prompt has the name, so Θ and the backbone answer once for each task
    encode = lambda text: restored.tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    for answer in answers:
        ids = encode(f" [task] {answer.speaker.task}") + encode(f" [text] {answer.prompt}")
        theirs = alone(restored, lora_of(restored, *answer.speaker), ids, repetition_penalty=1.7)
        assert answer.ids == theirs[: theirs.index(2) if 2 in theirs else None]
    with pytest.raises(UserError, match="names the task; give the name"):
        generate(restored, [], PROMPTS, base=True)


def test_sampled_answers_belong_to_their_task_and_depend_on_the_seed(model):
    restored = model()
    restored.model.backbone.model.generation_config.num_return_sequences = 2  # as a model's own file may set it
    greedy = generate(restored, NAMES, PROMPTS, max_new_tokens=8)
    options = {"max_new_tokens": 8, "do_sample": True, "num_return_sequences": 3}
    # With top_k=1 the draw is known: the greedy answer, whatever the batch.
    for batch_size in (64, 4):
        drawn = generate(restored, NAMES, PROMPTS, top_k=1, batch_size=batch_size, **options)
        assert [d.ids for d in drawn] == [g.ids for g in greedy for _ in range(3)]
        assert [d.sequence for d in drawn] == [0, 1, 2] * len(greedy)
    texts = [[a.text for a in generate(restored, ["a"], PROMPTS, seed=s, **options)] for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) > len(PROMPTS)


def test_a_models_generation_config_decides_only_how_to_sample(model):
    restored = model()
    plain = generate(restored, NAMES, PROMPTS, max_new_tokens=8)
    own = restored.model.backbone.model.generation_config
    own.update(num_beams=2, stop_strings=["e"], return_dict_in_generate=True, penalty_alpha=0.6, max_time=1e-9, top_k=1)
    assert generate(restored, NAMES, PROMPTS, max_new_tokens=8) == plain
    drawn = generate(restored, NAMES, PROMPTS, max_new_tokens=8, do_sample=True)
    assert [d.ids for d in drawn] == [p.ids for p in plain]  # because of its top_k=1
    assert restored.model.backbone.model.generation_config is own


def test_an_answer_stops_at_an_end_token(model, monkeypatch):
    restored = model()
    before = generate(restored, NAMES, PROMPTS, max_new_tokens=12)
    end = before[0].ids[5]
    restored.tokenizer.eos_token = restored.tokenizer.convert_ids_to_tokens(end)
    after = generate(restored, NAMES, PROMPTS, max_new_tokens=12)
    for whole, answer in zip(before, after, strict=True):
        assert answer.ids == whole.ids[: whole.ids.index(end) if end in whole.ids else None]
        assert answer.ended == (whole.ended or end in whole.ids)
    assert after[0].ended
    monkeypatch.setattr(type(restored.tokens), "end_of_turn", before[0].ids[3])  # as the end of a chat's answer
    ids = before[0].ids
    assert generate(restored, NAMES, PROMPTS, max_new_tokens=12)[0].ids == ids[: ids.index(ids[3])]


def test_the_command_prints_names_or_json(trained, call):
    line = partial(call, command_line.main, trained("tau=100"))
    code, out, err = line("--task", "a", "--mean", "--prompt", "the law", "--max-new-tokens", "4")
    assert (code, err) == (0, "")
    assert "prompt: the law\n\n--- a\nthe law" in out
    assert "--- Θ, the hierarchical mean\nthe law" in out
    code, out, _ = line("--task", "a", "--base", "--prompt", "the law", "--prompt", "", "--json")
    answers = [json.loads(one) for one in out.splitlines()]
    assert [(a["prompt"], a["kind"], a["task"]) for a in answers] == [
        (prompt, kind, task) for prompt in ("the law", "") for kind, task in (("task", "a"), ("base", None))
    ]
    said = ["--task", "a", "--prompt", "x"]
    for arguments, message in (
        (["--task", "nobody", "--prompt", "x"], "the run has no task nobody; it has"),
        (["--prompt", "x"], "give at least one --prompt"),
        (["--task", "a"], "give at least one --prompt"),
        ([*said, "--max-new-tokens", "0"], "--max-new-tokens: '0': Input should be greater"),
        ([*said, "--max-new-tokens", "255"], "256 positions"),
        ([*said, "--do-sample", "--top-p", "1.5"], "--top-p: '1.5'"),
        ([*said, "--do-sample", "--temperature", "nan"], "--temperature: 'nan'"),
        ([*said, "--temperature", "0.5"], "without --do-sample"),
        ([*said, "--num-return-sequences", "2"], "all would be the same"),
    ):
        code, out, err = line(*arguments)
        assert (code, out) == (2, ""), arguments
        assert err.startswith(("bora: ", "usage: "))
        assert message in err.splitlines()[-1]
