import pytest

from bora.errors import UserError
from bora.model.targets import find_targets
from tests.conftest import tiny_opt


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
    with pytest.raises(UserError, match=r"matches no linear layer.*fc1"):
        find_targets(model, ["proj"])
    model.config.model_type = "novel"
    with pytest.raises(UserError, match="no default for the architecture 'novel'"):
        find_targets(model, None)
