"""The benchmark measures what it says, small."""

import json
import sys

import pytest
import torch

from bora.model.likelihood import IGNORE
from experiments.bench import bench
from tests.conftest import VOCABULARY, tiny_opt

SMALL = ["model=opt_mini", "batch_size=4", "length=12", "rounds=2", "warmup=1", "loop_tasks=3", "lora.rank=2"]


@pytest.fixture
def cfg():
    return bench.read_settings(SMALL)


def test_the_command_prints_a_table_and_appends_its_numbers(tmp_path, monkeypatch, capsys):
    out = tmp_path / "b.jsonl"
    arguments = [*SMALL, "tasks=[2,2000000000]", "memory=false", f"out={out}"]
    monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
    bench.main()
    printed = capsys.readouterr().out
    (result,) = map(json.loads, out.read_text().splitlines())
    assert result["arguments"] == arguments
    rows = {row["name"]: row for row in result["variants"]}
    assert list(rows) == ["floor", "one_lora", "loop_3", "bora_2"]
    assert list(result["left_out"]) == ["bora_2000000000"]
    for row in rows.values():
        assert len(row["all_seconds"]) == 2
        low, high = row["quartiles"]
        assert 0 < low <= row["seconds"] <= high
    ratios = [b / f for b, f in zip(*(rows[n]["all_seconds"] for n in ("bora_2", "floor")), strict=True)]
    assert rows["bora_2"]["to_floor"] == pytest.approx(sum(ratios) / 2)
    assert "bora_2" in printed
    assert "left out" in printed


def test_batches_are_ragged_and_the_same_for_the_same_seed(cfg):
    one, two = (next(bench.random_batches(cfg, VOCABULARY)) for _ in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    lengths = one["mask"].sum(1)
    assert lengths.min() >= 6
    assert lengths.max() == one["input_ids"].shape[1] <= 12
    assert ((one["labels"] == IGNORE) == (one["mask"] == 0)).all()
    assert set(bench.of_tasks(one, 2)["task"].tolist()) <= {0, 1}


@pytest.mark.parametrize("name", ["one_lora", "loop", "bora"])
def test_a_variant_trains_its_adapters_and_nothing_else(cfg, name):
    model = tiny_opt()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    copy = bench.copy_of(model)
    step = getattr(bench, name)(copy, cfg, 3)
    batch = bench.of_tasks(next(bench.random_batches(cfg, VOCABULARY)), 3)
    trained = {k: v.detach().clone() for k, v in step_parameters(step).items()}
    for _ in range(2):
        step(batch)
    moved = {k for k, v in step_parameters(step).items() if not torch.equal(v, trained[k])}
    assert moved
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def step_parameters(step) -> dict[str, torch.Tensor]:
    """What a step's optimiser updates."""
    (optimiser,) = (c.cell_contents for c in step.__closure__ if isinstance(c.cell_contents, torch.optim.Optimizer))
    return {str(i): p for i, p in enumerate(optimiser.param_groups[0]["params"])}


def test_the_floor_goes_back_to_the_embeddings_and_trains_nothing(cfg):
    model = tiny_opt()
    seen = []
    step = bench.floor(bench.copy_of(model), cfg, 1)
    hook = lambda grad: seen.append(grad.abs().sum().item())  # noqa: E731
    closure = dict(zip(step.__code__.co_freevars, (c.cell_contents for c in step.__closure__), strict=True))
    embeddings = closure["backbone"].model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, args, output: output.register_hook(hook) and None)
    step(bench.of_tasks(next(bench.random_batches(cfg, VOCABULARY)), 1))
    assert seen
    assert seen[0] > 0
    assert not any(p.requires_grad for p in closure["backbone"].parameters())
