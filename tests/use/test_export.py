"""Exported adapters are, in PEFT, the very models that the run tested."""

import json
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from huggingface_hub.constants import HF_HUB_CACHE
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

import bora
from bora.use import export
from bora.use.restore import restore
from tests.conftest import table, tiny_opt

TOKENIZER = Path(bora.__file__).parent / "assets/opt_mini"
TASKS = {"Pia Kjærsgaard": 24, "../b | <i>*x*": 40}
FOLDERS = {"Pia Kjærsgaard": "Pia-Kjaersgaard", "../b | <i>*x*": "b-i-x"}


def base_folder(path: Path, family: str = "opt") -> Path:
    """A tiny model with random weights and opt_mini's tokenizer, saved."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    if family == "gpt2":
        config = GPT2Config(
            n_embd=16,
            n_layer=2,
            n_head=2,
            vocab_size=len(tokenizer),
            n_positions=32,
            initializer_range=0.3,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        model = GPT2LMHeadModel(config)
    else:
        sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2}
        config = OPTConfig(
            vocab_size=len(tokenizer), num_attention_heads=2, max_position_embeddings=32, init_std=0.3, **sizes
        )
        model = OPTForCausalLM(config)
    transformers.utils.logging.disable_progress_bar()  # a test of one line on standard error is to see that line
    model.save_pretrained(path)
    transformers.utils.logging.enable_progress_bar()
    tokenizer.save_pretrained(path)
    return path


def train(command, base: Path, out: Path, *more: str, tasks: dict[str, int] = TASKS) -> None:
    data = table(out.with_suffix(".csv"), tasks)
    code, _, err = command(
        "model=opt_350m",
        f"model.path={base}",
        "model.dtype=float32",
        "data=table",
        f"data.path={data}",
        "data.min_documents=5",
        "data.max_tokens=16",
        "trainer.max_epochs=1",
        "optim.lr=0.05",
        "lora.rank=3",
        "lora.alpha=5",
        "logger=none",
        f"hydra.run.dir={out}",
        *more,
    )
    assert (code, err) == (0, "")


@pytest.fixture
def exported(call):
    """`bora export ARGUMENTS`: exit code, standard output, standard error."""
    return partial(call, export.main)


def our_logits(run: Path, ids: torch.Tensor) -> dict[str | None, torch.Tensor]:
    """By task, and None for the mean: logits of the run's best epoch."""
    model = restore(run).model
    adapters = model.adapters
    thetas = {name: adapters.theta(d) for d, name in enumerate(adapters.task_names)} | {None: adapters.mean}
    logits = {}
    for name, theta in thetas.items():
        with torch.no_grad(), model.backbone.routed(theta):
            logits[name] = model.backbone.model(input_ids=ids).logits
    return logits


def peft_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    config = json.loads((folder / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])
    model = PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        return model(input_ids=ids).logits


IDS = torch.tensor([[2, 9, 31, 44, 7, 100, 12], [2, 55, 8, 8, 300, 1, 40]])


@pytest.mark.parametrize(
    ("family", "tau", "more"),
    [
        ("opt", 100, ["prior.parameterization=centered"]),
        ("opt", 0, []),
        ("opt", 100, ["lora.target_modules=all-linear"]),
        ("opt", 100, ["lora.target_modules='.*1.self_attn.(q_proj|out_proj)'"]),
        ("opt", "inf", []),
        ("gpt2", 100, []),
        ("gpt2", 100, ["lora.target_modules=[attn.c_proj,c_fc]"]),
    ],
)
def test_peft_computes_the_same_logits(command, exported, tmp_path, family, tau, more):
    base = base_folder(tmp_path / "base", family)
    train(command, base, tmp_path / "run", f"tau={tau}", *more)
    code, out, err = exported("run", "out")
    assert (code, err) == (0, "")
    assert f"3 PEFT adapters: {tmp_path / 'out'}" in out
    mapping = json.loads((tmp_path / "out/tasks.json").read_text("utf-8"))
    assert mapping["mean"] == "hierarchical-mean"
    assert {task: folder for folder, task in mapping["tasks"].items()} == FOLDERS
    expected = our_logits(tmp_path / "run", IDS)
    for folder, task in (mapping["tasks"] | {"hierarchical-mean": None}).items():
        found = peft_logits(tmp_path / "out" / folder, IDS)
        torch.testing.assert_close(found, expected[task], rtol=0, atol=1e-5)
    tensors = load_file(tmp_path / "out/hierarchical-mean/adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    first, second = (expected[t] for t in TASKS)
    assert torch.equal(first, second) == (tau == "inf")
    with torch.no_grad():
        bare = AutoModelForCausalLM.from_pretrained(base)(input_ids=IDS).logits
    assert (first - bare).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_a_merged_model_is_its_adapter(command, exported, tmp_path, family):
    train(command, base_folder(tmp_path / "base", family), tmp_path / "run")
    task = "Pia Kjærsgaard"
    assert exported("run", "one", "--task", task)[0] == 0
    assert exported("run", "merged", "--merge", "--task", task)[0] == 0
    assert sorted(f.name for f in (tmp_path / "one").iterdir()) == [FOLDERS[task], "tasks.json"]
    assert json.loads((tmp_path / "one/tasks.json").read_text("utf-8"))["mean"] is None
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("order").input_ids
    assert ModelCard.load(tmp_path / "merged/README.md").data.library_name == "transformers"
    with torch.no_grad():
        logits = merged(input_ids=IDS).logits
    torch.testing.assert_close(logits, peft_logits(tmp_path / "one" / FOLDERS[task], IDS), rtol=0, atol=1e-5)


def test_a_merged_weight_is_rounded_once():
    model = tiny_opt(dtype=torch.bfloat16)
    name = "model.decoder.layers.0.self_attn.q_proj"
    weight = model.get_submodule(name).weight.detach().clone()
    A, B = torch.randn(3, 16), torch.randn(16, 3)
    export.merge_into(model, {name: export.LowRank(A, B)}, 0.5)
    exact = weight.double() + 0.5 * (B.double() @ A.double())
    assert model.get_submodule(name).weight.dtype == torch.bfloat16
    torch.testing.assert_close(model.get_submodule(name).weight.double(), exact, rtol=2**-8, atol=1e-6)


def test_the_card_says_what_it_is(command, exported, tmp_path):
    base = base_folder(tmp_path / "base")
    train(command, base, tmp_path / "run", "data.prompt='[x] '")
    assert exported("run", "out")[0] == 0
    card = ModelCard.load(tmp_path / "out/b-i-x/README.md")
    assert (card.data.base_model, card.data.library_name) == (str(base), "peft")
    per_task = restore(tmp_path / "run").directory.per_task().set_index("task")
    row = per_task.loc["../b | <i>*x*"]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    for line in (
        r"| task | ../b \| \<i\>\*x\* |",
        f"| training documents | {int(row.n_train)} ({int(row.train_tokens)} scored tokens) |",
        f"| validation perplexity | {row.val_perplexity:.3f} |",
        f"| test perplexity | {row.test_perplexity:.3f} |",
        f"frozen base model | {summary['base_test_perplexity']:.3f} |",
        "| τ | 100 |",
        "| rank r | 3 |",
        summary["data_sha256"],
        r'| data.prompt | "\[x] " |',
        "--enable-lora --max-lora-rank 8 --lora-modules b-i-x=./b-i-x",
    ):
        assert line in card.content
    mean = (tmp_path / "out/hierarchical-mean/README.md").read_text("utf-8")
    assert f"| training documents | {per_task['n_train'].sum()} (" in mean
    code = re.search(r"```python\n(.*?)```", card.content, re.DOTALL)[1]
    compile(code, "card", "exec")


def test_the_base_is_named_so_that_it_is_found(tmp_path, monkeypatch):
    def name(loaded: str, path: str) -> str | None:
        model = SimpleNamespace(config=SimpleNamespace(name_or_path=loaded))
        return export.base_name(SimpleNamespace(model=SimpleNamespace(path=path)), model)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert name("folder", "folder") == str(tmp_path / "folder")
    assert name(str(TOKENIZER), "opt_mini") == str(TOKENIZER)
    assert name("facebook/opt-125m", "facebook/opt-125m") == "facebook/opt-125m"
    snapshot = f"{HF_HUB_CACHE}/models--facebook--opt-125m/snapshots/abc"
    assert name(snapshot, "facebook/opt-125m") == "facebook/opt-125m"
    assert name("", "x") is None


def test_short_names_are_given_only_where_they_name_these_layers_alone():
    model = tiny_opt()
    q = [f"model.decoder.layers.{n}.self_attn.q_proj" for n in range(2)]
    assert export.target_modules(model, q) == ["q_proj"]
    assert export.target_modules(model, q[:1]) == q[:1]


def test_what_cannot_be_exported_is_told_before_anything_is_written(command, exported, tmp_path, monkeypatch):
    train(command, base_folder(tmp_path / "base"), tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/kept").write_text("")
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in (
        (["nowhere", "out"], "there is no finished run"),
        (["run", "full"], "is not empty"),
        (["run", "file"], "is a file"),
        (["run", "file/out"], "file/out cannot be"),
        (["run", "out", "--task", "pia kjaersgaard"], "no such task; near to it: Pia Kjærsgaard"),
        (["run", "out", "--task", "zzzzzz"], "no such task; it has "),
        (["run", "out", "--merge"], "exactly one --task"),
        (["run", "out", "--merge", "--task", "a", "--task", "b"], "exactly one --task"),
    ):
        code, out, err = exported(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), arguments
        assert err.startswith("bora: ")
        assert message in err
    assert sorted(tmp_path.rglob("*")) == before

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export, "save_file", full)
        code, _, err = exported("run", "out")
        assert (code, err.count("\n")) == (2, 1)
        assert "No space left" in err
        quantised = restore(tmp_path / "run")
        quantised.cfg.model.quantization = "int8"
        patch.setattr(export, "restore", lambda run: quantised)
        code, _, err = exported("run", "out", "--merge", "--task", "Pia Kjærsgaard")
        assert (code, err.count("\n")) == (2, 1)
        assert "int8" in err
        patch.setitem(sys.modules, "peft", None)
        code, _, err = exported("run", "out")
        assert (code, err.count("\n")) == (2, 1)
        assert "pip install 'bora[peft]'" in err
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "out").mkdir()  # an empty one is as good as none
    assert exported("run", "out")[0] == 0


def test_random_weights_that_are_nowhere_are_exported_as_a_whole_model_only(command, exported, tmp_path):
    data = table(tmp_path / "t.csv", TASKS)
    small = "hidden_size=16 num_hidden_layers=1 num_attention_heads=2 ffn_dim=16 word_embed_proj_dim=16"
    code, _, _ = command(
        "model=opt_350m_random",
        *(f"model.config.{s}" for s in small.split()),
        "model.dtype=float32",
        "data=table",
        f"data.path={data}",
        "data.min_documents=5",
        "data.max_tokens=16",
        "trainer.max_steps=1",
        "logger=none",
        "hydra.run.dir=run",
    )
    assert code == 0
    code, _, err = exported("run", "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "--merge" in err
    assert exported("run", "out", "--merge", "--task", "Pia Kjærsgaard")[0] == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
