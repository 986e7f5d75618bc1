"""A run starts exactly at PEFT adapters; adapters that it cannot start from are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bora.bayes.model import HierarchicalLoRA
from bora.errors import UserError
from bora.runs.peft import start_from_adapters
from bora.use.export import export
from bora.use.restore import restore
from tests.conftest import TASKS, hierarchical, one_line, random_factors, tiny_opt
from tests.use.test_export import gpt2, our_logits, peft_logits  # noqa: F401

STILL = ["tau=100", "optim.lr=1e-60", "trainer.max_steps=1"]  # a step too small for float32


def model_of(tasks: list[str], tau: float = 100, rank: int = 4, alpha: float = 6, **more) -> HierarchicalLoRA:
    torch.manual_seed(3)
    return hierarchical(tiny_opt(), tasks, [3] * len(tasks), 50, tau, rank, alpha, **more)


def peft_folder(folder: Path, seed: int = 0, rank: int = 2, alpha: float = 5, **more) -> Path:
    """Save a plain adapter of tiny_opt with PEFT."""
    config = LoraConfig(r=rank, lora_alpha=alpha, **{"target_modules": ["q_proj", "v_proj"], **more})
    peft = get_peft_model(tiny_opt(), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    peft.save_pretrained(folder)
    return folder


def update(folder: Path, layer: str, scale: float) -> torch.Tensor:
    tensors = load_file(folder / "adapter_model.safetensors")
    A, B = (tensors[f"base_model.model.{layer}.lora_{f}.weight"] for f in "AB")
    return scale * (B @ A)


@pytest.mark.parametrize("form", ["centered", "noncentered"])
@pytest.mark.parametrize("tau", [100, float("inf")])
def test_all_tasks_and_the_mean_start_at_a_single_adapter(tmp_path, form, tau):
    folder = peft_folder(tmp_path / "adapter", rank=2, alpha=5)
    model = model_of(["a", "b"], tau, parameterization=form)
    fresh = model.adapters.mean.detach().clone()
    start_from_adapters(model, folder)
    for lora in (*model.tasks.values(), model.mean):
        for layer, (A, B) in lora.items():
            expected = update(folder, layer, 5 / 2)
            torch.testing.assert_close(6 / 4 * B @ A, expected, rtol=1e-5, atol=1e-5)
            assert torch.equal(A[2:], model.adapters.layout.factors(fresh)[layer].A[2:])  # can still learn
            assert not B[:, 2:].any()
    assert model.adapters.distances().max() == 0


def exported_folder(folder: Path, tasks: list[str], mean: bool) -> Path:
    for n in range(len(tasks)):
        peft_folder(folder / f"f{n}", seed=n)
    if mean:
        peft_folder(folder / "hierarchical-mean", seed=99)
    mapping = {"mean": "hierarchical-mean" if mean else None, "tasks": {f"f{n}": t for n, t in enumerate(tasks)}}
    (folder / "tasks.json").write_text(json.dumps(mapping))
    return folder


@pytest.mark.parametrize("mean", [True, False])
def test_tasks_start_at_their_own_adapter_by_name(tmp_path, caplog, mean):
    folder = exported_folder(tmp_path / "out", ["old", "b", "a"], mean)
    model = model_of(["a", "b", "new"])
    with caplog.at_level("INFO", "bora"):
        start_from_adapters(model, folder)
    assert "2 of 3 tasks" in caplog.text
    assert "there is no LoRA for new: they start at the mean" in caplog.text
    assert "no task old" in caplog.text
    layers = list(model.mean)
    for task, place in (("a", "f2"), ("b", "f1")):
        for layer in layers:
            A, B = model.tasks[task][layer]
            torch.testing.assert_close(6 / 4 * B @ A, update(folder / place, layer, 5 / 2), rtol=1e-5, atol=1e-5)
    for layer in layers:
        theirs = [load_file(folder / f"f{n}/adapter_model.safetensors") for n in range(3)]
        if mean:
            theirs = [load_file(folder / "hierarchical-mean/adapter_model.safetensors")]
        A, B = (torch.stack([t[f"base_model.model.{layer}.lora_{f}.weight"] for t in theirs]).mean(0) for f in "AB")
        torch.testing.assert_close(model.mean[layer].A[:2], A)
        torch.testing.assert_close(model.mean[layer].B[:, :2], B * (5 / 2) / (6 / 4))
        for ours, start in zip(model.tasks["new"][layer], model.mean[layer], strict=True):
            assert torch.equal(ours, start)


@pytest.mark.parametrize("form", ["centered", "noncentered"])
def test_a_run_starts_where_the_exported_one_ended(trained, tmp_path, form):
    one = trained("tau=100", f"prior.parameterization={form}")
    out = tmp_path / "out"
    export(one, out)
    start = [*STILL, f"init_from={out}"]
    ended, begun = restore(one).model.adapters, restore(trained(*start)).model.adapters
    assert ended.distances().min() > 0.1
    assert torch.equal(begun.mean, ended.mean)
    for task in range(len(TASKS)):
        torch.testing.assert_close(begun.theta(task), ended.theta(task), rtol=0, atol=1e-6)
    # At a larger rank and another α it is the same model.
    larger = trained(*start, "lora.rank=7", "lora.alpha=2")
    expected, found = our_logits(one), our_logits(larger)
    for task in (*TASKS, None):
        torch.testing.assert_close(found[task], expected[task], rtol=0, atol=1e-5)


def test_an_adapter_of_gpt2s_transposed_layers_is_loaded(trained, gpt2, tmp_path):  # noqa: F811
    base = gpt2[1].partition("=")[2]
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    torch.manual_seed(0)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    expected = peft_logits(tmp_path / "adapter")
    for logits in our_logits(trained(*gpt2, *STILL, f"init_from={tmp_path / 'adapter'}")).values():
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_rslora": True}, "use_rslora=true"),
        ({"bias": "lora_only"}, 'bias="lora_only"'),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 1}}, "rank_pattern"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"rank": 5}, "rank 5; give lora.rank=5 or more"),
        ({"target_modules": ["q_proj"]}, "only this run adapts the layer model.decoder.layers.0.self_attn.v_proj"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "adapts the layer model.decoder.layers.0.self_attn.k_pro"),
    ],
)
def test_an_adapter_that_is_not_a_plain_lora_of_these_layers_is_refused(tmp_path, config, message):
    folder = peft_folder(tmp_path / "adapter", **config)
    model = model_of(["a", "b"])
    random_factors(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        start_from_adapters(model, folder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_spoiled_files_are_refused_in_one_line(tmp_path):
    good = peft_folder(tmp_path / "good")
    key = "base_model.model.model.decoder.layers.0.self_attn.q_proj.lora_A.weight"

    def changed(name: str, config: dict | str | None = None, tensors: dict | str | None = None) -> Path:
        folder = tmp_path / name
        shutil.copytree(good, folder)
        if config is not None:
            whole = json.loads((good / "adapter_config.json").read_text())
            text = json.dumps(whole | config) if isinstance(config, dict) else config
            (folder / "adapter_config.json").write_text(text)
        file = folder / "adapter_model.safetensors"
        if isinstance(tensors, dict):
            save_file({k: v for k, v in (load_file(file) | tensors).items() if v is not None}, file)
        elif tensors is not None:
            file.write_text(tensors)
        return folder

    for folder, message in (
        (changed("cut", tensors="x"), "adapter_model.safetensors is not readable"),
        (changed("deep", config="[" * 200_000), "adapter_config.json is not readable"),
        (changed("list", config="[]"), "not a JSON object"),
        (changed("ia3", config={"peft_type": "IA3"}), "type IA3"),
        (changed("no-r", config={"r": None}), "no valid r and lora_alpha"),
        (changed("future", config={"use_new_thing": True}), "use_new_thing=true"),
        (changed("half", tensors={key: None}), "lacks the matrix lora_A or lora_B"),
        (changed("rank", tensors={key: torch.ones(3, 16)}), "another rank than the 2"),
        (changed("nan", tensors={key: torch.full((2, 16), torch.nan)}), "not finite"),
        (changed("wide", tensors={key: torch.ones(2, 17)}), "it is of another base model"),
        (changed("extra", tensors={"base_model.model.lm_head.weight": torch.ones(2)}), "holds base_model.model.lm"),
    ):
        with pytest.raises(UserError) as error:
            start_from_adapters(model_of(["a", "b"]), folder)
        assert message in str(error.value), folder
        assert "\n" not in str(error.value)
    for text in ("{", "{}", '{"mean": null, "tasks": {}}', '{"mean": 1, "tasks": {"f": "a"}}'):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out/tasks.json").write_text(text)
        with pytest.raises(UserError, match=r"tasks\.json"):
            start_from_adapters(model_of(["a", "b"]), tmp_path / "out")


def test_the_command_refuses_a_folder_without_a_fitting_adapter(command, tmp_path):
    peft_folder(tmp_path / "adapter")
    (tmp_path / "empty").mkdir()
    data = "data.modules=[pickle,ssl]", "data.documents_per_task=9", "data.min_documents=3", "logger=none"
    for folder, message in (("empty", "neither a finished run nor a PEFT adapter"), ("adapter", "the layer")):
        one_line(command(*data, f"init_from={folder}", "hydra.run.dir=run"), message)
        assert not list(tmp_path.rglob("*.ckpt"))
