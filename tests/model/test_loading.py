import pytest
import torch

from bora.config.compose import compose_config
from bora.errors import UserError
from bora.model import loading
from bora.model.loading import load_backbone


def opt_mini(*overrides: str):
    """Return the config group model=opt_mini."""
    return compose_config(["model=opt_mini", *overrides])[0].model


@pytest.mark.parametrize(("speed", "dtype"), [(0.1, torch.float32), (1.2, torch.float32), (3.0, torch.bfloat16)])
def test_auto_chooses_bfloat16_if_it_is_fast_and_logs_the_choice(monkeypatch, caplog, speed, dtype):
    monkeypatch.setattr(loading, "bfloat16_speed", lambda: speed)
    with caplog.at_level("INFO", logger="bora"):
        model = load_backbone(opt_mini("model.dtype=auto"), "cpu", 128).model
    assert model.dtype == dtype
    assert str(dtype).removeprefix("torch.") in caplog.text


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
def test_short_documents_in_bfloat16_on_a_cpu_use_eager_attention(dtype, max_tokens, asked, taken):
    cfg = opt_mini(f"model.dtype={dtype}", f"model.attention={asked}")
    assert load_backbone(cfg, "cpu", max_tokens).model.config._attn_implementation == taken


def test_an_attention_unknown_to_transformers_is_refused():
    with pytest.raises(UserError, match=r"model\.attention=clever is refused"):
        load_backbone(opt_mini("model.attention=clever"), "cpu", 128)
