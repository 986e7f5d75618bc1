"""Exported adapters are, in PEFT, exactly the models that the run tested."""

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
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import bora
from bora.commands import export as command_line
from bora.config.schema import HubModel
from bora.errors import UserError
from bora.model.lora import LowRank
from bora.model.targets import named_targets
from bora.use.export import base_name, export, merge_into, peft_config, target_modules
from bora.use.restore import restore
from tests.conftest import TASKS, one_line, tiny_opt
from tests.model.test_architectures import GROUPED, TOKENS

TOKENIZER = Path(bora.__file__).parent / "assets/opt_mini"
FOLDERS = {"a": "a", "a longer name": "a-longer-name", "../b | <i>*x*": "b-i-x"}
IDS = torch.tensor([[2, 9, 31, 44, 7, 100, 12], [2, 55, 8, 8, 300, 1, 40]])


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory) -> list[str]:
    """Save a tiny GPT-2 with random weights and opt_mini's tokenizer; return its settings."""
    path = tmp_path_factory.mktemp("gpt2")
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": len(tokenizer), "n_positions": 32}
    transformers.utils.logging.disable_progress_bar()
    GPT2LMHeadModel(GPT2Config(**sizes, **ends, initializer_range=0.3)).save_pretrained(path)
    transformers.utils.logging.enable_progress_bar()
    tokenizer.save_pretrained(path)
    return ["model=opt_350m", f"model.path={path}", "model.dtype=float32"]


def our_logits(run: Path) -> dict[str | None, torch.Tensor]:
    """Return the logits of the run's best epoch, by task; None is the mean."""
    model = restore(run).model
    adapters = model.adapters
    thetas = {name: adapters.theta(d) for d, name in enumerate(adapters.task_names)} | {None: adapters.mean}
    logits = {}
    for name, theta in thetas.items():
        with torch.no_grad(), model.backbone.routed(theta):
            logits[name] = model.backbone.model(input_ids=IDS).logits
    return logits


def peft_logits(folder: Path) -> torch.Tensor:
    config = json.loads((folder / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder).eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("opt", ["tau=100", "prior.parameterization=centered"]),
        ("opt", ["tau=0", "lora.dropout=0.25"]),
        ("opt", ["tau=inf"]),
        ("opt", ["tau=100", "lora.target_modules=all-linear"]),
        ("opt", ["tau=100", "lora.target_modules='.*1.self_attn.(q_proj|out_proj)'"]),
        ("gpt2", ["tau=100"]),
        ("gpt2", ["tau=100", "lora.target_modules=[attn.c_proj,c_fc]"]),
    ],
)
def test_peft_computes_the_same_logits(trained, gpt2, tmp_path, family, overrides):
    run = trained(*(gpt2 if family == "gpt2" else []), *overrides)
    out = tmp_path / "out"
    assert export(run, out) == 4
    mapping = json.loads((out / "tasks.json").read_text("utf-8"))
    assert mapping["mean"] == "hierarchical-mean"
    assert {task: folder for folder, task in mapping["tasks"].items()} == FOLDERS
    expected = our_logits(run)
    for folder, task in (mapping["tasks"] | {"hierarchical-mean": None}).items():
        torch.testing.assert_close(peft_logits(out / folder), expected[task], rtol=0, atol=1e-5)
    config = json.loads((out / "hierarchical-mean/adapter_config.json").read_text())
    assert config["lora_dropout"] == 0.25 * ("lora.dropout=0.25" in overrides)
    tensors = load_file(out / "hierarchical-mean/adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    first, second, _ = (expected[t] for t in TASKS)
    assert torch.equal(first, second) == ("tau=inf" in overrides)
    with torch.no_grad():
        bare = restore(run).model.backbone.model(input_ids=IDS).logits
    assert (first - bare).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_a_merged_model_computes_the_same_as_its_adapter(trained, gpt2, tmp_path, family):
    run, task = trained(*(gpt2 if family == "gpt2" else []), "tau=100"), "a longer name"
    assert export(run, tmp_path / "one", [task]) == 1
    export(run, tmp_path / "merged", [task], merge=True)
    assert sorted(f.name for f in (tmp_path / "one").iterdir()) == ["README.md", FOLDERS[task], "tasks.json"]
    assert json.loads((tmp_path / "one/tasks.json").read_text("utf-8"))["mean"] is None
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("order").input_ids
    assert ModelCard.load(tmp_path / "merged/README.md").data.library_name == "transformers"
    with torch.no_grad():
        logits = merged(input_ids=IDS).logits
    torch.testing.assert_close(logits, peft_logits(tmp_path / "one" / FOLDERS[task]), rtol=0, atol=1e-5)


def test_a_merged_weight_is_rounded_once():
    model = tiny_opt(dtype=torch.bfloat16)
    name = "model.decoder.layers.0.self_attn.q_proj"
    weight = model.get_submodule(name).weight.detach().clone()
    A, B = torch.randn(3, 16), torch.randn(16, 3)
    merge_into(model, {name: LowRank(A, B)}, 0.5)
    exact = weight.double() + 0.5 * (B.double() @ A.double())
    assert model.get_submodule(name).weight.dtype == torch.bfloat16
    torch.testing.assert_close(model.get_submodule(name).weight.double(), exact, rtol=2**-8, atol=1e-6)


def test_the_card_has_the_adapters_task_figures_and_settings(trained, tmp_path):
    run = trained("tau=100", "data.prompt='[x] '")
    export(run, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/b-i-x/README.md")
    assert (card.data.base_model, card.data.library_name) == (str(TOKENIZER), "peft")
    restored = restore(run)
    per_task = restored.directory.per_task().set_index("task")
    row = per_task.loc["../b | <i>*x*"]
    for line in (
        r"| task | ../b \| \<i\>\*x\* |",
        f"| training documents | {int(row.n_train)} ({int(row.train_tokens)} scored tokens) |",
        f"| validation perplexity | {row.val_perplexity:.3f} |",
        f"| test perplexity | {row.test_perplexity:.3f} |",
        f"frozen base model | {restored.summary['base_test_perplexity']:.3f} |",
        "| τ | 100 |",
        "| rank r | 3 |",
        restored.summary["data_sha256"],
        r'| data.prompt | "\[x] " |',
        "--enable-lora --max-lora-rank 8 --lora-modules b-i-x=./b-i-x",
    ):
        assert line in card.content
    mean = (tmp_path / "out/hierarchical-mean/README.md").read_text("utf-8")
    assert f"| training documents | {per_task['n_train'].sum()} (" in mean
    compile(re.search(r"```python\n(.*?)```", card.content, re.DOTALL)[1], "card", "exec")


def test_the_base_model_is_named_by_absolute_path_or_hub_name(tmp_path, monkeypatch):
    hub = HubModel.model_construct(path="facebook/opt-125m")

    def name(loaded: str) -> str | None:
        return base_name(SimpleNamespace(model=hub), SimpleNamespace(config=SimpleNamespace(name_or_path=loaded)))

    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert name("folder") == str(tmp_path / "folder")
    assert name("facebook/opt-125m") == "facebook/opt-125m"
    assert name(f"{HF_HUB_CACHE}/models--facebook--opt-125m/snapshots/abc") == "facebook/opt-125m"
    assert name("") is None


def test_short_layer_names_are_used_only_if_they_match_no_other_layers():
    model = tiny_opt()
    q = [f"model.decoder.layers.{n}.self_attn.q_proj" for n in range(2)]
    assert target_modules(model, q) == ["q_proj"]
    assert target_modules(model, q[:1]) == q[:1]


def test_a_refused_export_leaves_no_files(trained, call, tmp_path, monkeypatch):
    run = trained("tau=100")
    monkeypatch.chdir(tmp_path)
    line = partial(call, command_line.main)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/kept").write_text("")
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))

    def refused(message: str, *arguments: object) -> None:
        one_line(line(*arguments), message)
        assert sorted(tmp_path.rglob("*")) == before

    refused("no finished run", "nowhere", "out")
    refused("is not empty", run, "full")
    refused("is a file", run, "file")
    refused("file/out: nothing can be written there", run, "file/out")
    refused("no task longer", run, "out", "--task", "longer")
    refused("exactly one --task", run, "out", "--merge", "--task", "a", "--task", "b")
    with monkeypatch.context() as patch:
        quantised = restore(run)
        quantised.cfg.model.quantization = "int8"
        patch.setattr("bora.use.export.restore", lambda run: quantised)
        refused("int8", run, "out", "--merge", "--task", "a")
        patch.setitem(sys.modules, "peft", None)
        refused("pip install peft", run, "out")
    (tmp_path / "out").mkdir()  # an empty folder may exist
    code, out, err = line(run, "out")
    assert (code, out.splitlines()[-1], err) == (0, f"4 PEFT adapters: {tmp_path / 'out'}", "")
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert len({file.stat().st_mode for file in files}) == 1  # the weights are as readable as the cards


def test_a_run_on_random_weights_is_exported_only_as_a_whole_model(trained, tmp_path):
    small = "hidden_size=16 num_hidden_layers=1 num_attention_heads=2 ffn_dim=16 word_embed_proj_dim=16"
    sizes = (f"model.config.{s}" for s in small.split())
    run = trained("model=opt_350m_random", *sizes, "model.dtype=float32", "trainer.max_steps=1")
    with pytest.raises(UserError, match="--merge"):
        export(run, tmp_path / "out")
    export(run, tmp_path / "out", ["a"], merge=True)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_adapters_that_peft_would_load_as_experts_are_refused():
    # One block's MLP is dense and the other's is routed, and both have a down_proj.
    routed = {"num_experts": 4, "moe_intermediate_size": 8, "decoder_sparse_step": 1, "mlp_only_layers": [0]}
    config = AutoConfig.for_model("qwen3_moe", **GROUPED | routed)
    model = AutoModelForCausalLM.from_config(config)
    hparams = {"rank": 2, "alpha": 2.0}
    peft_config(model, hparams | {"layers": list(named_targets(model, ["q_proj"]))}, "base", 0.0)
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.gate_proj of a qwen3_moe without its LoRA"):
        peft_config(model, hparams | {"layers": list(named_targets(model, "all-linear"))}, "base", 0.0)


def test_adapters_that_peft_would_not_load_are_refused():
    config = AutoConfig.for_model(
        "mamba2", **TOKENS, hidden_size=16, num_heads=4, head_dim=8, n_groups=1, num_hidden_layers=1
    )
    model = AutoModelForCausalLM.from_config(config)
    hparams = {"rank": 2, "alpha": 2.0, "layers": list(named_targets(model, "all-linear"))}
    with pytest.raises(UserError, match=r"PEFT .* would refuse these adapters \(.*out_proj.*\); write whole models"):
        peft_config(model, hparams, "base", 0.0)
