"""The benchmark measures what it claims to, on a small scale."""

import json
import signal
import sys

import pytest
import torch

from experiments.bench import bench, gpu
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


@pytest.mark.parametrize("name", ["one_lora", "loop", "bora"])
def test_a_variant_trains_its_adapters_and_nothing_else(cfg, name):
    model = tiny_opt()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    step = getattr(bench, name)(bench.copy_of(model), cfg, 3)
    (optimiser,) = (c.cell_contents for c in step.__closure__ if isinstance(c.cell_contents, torch.optim.Optimizer))
    adapters = optimiser.param_groups[0]["params"]
    start = [adapter.detach().clone() for adapter in adapters]
    for _ in range(2):
        step(bench.of_tasks(next(bench.random_batches(cfg, VOCABULARY)), 3))
    assert not all(map(torch.equal, adapters, start))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_the_floors_backward_reaches_the_embeddings_and_trains_nothing(cfg):
    model, gradients = bench.copy_of(tiny_opt()), []
    step = bench.floor(model, cfg, 1)
    hook = lambda module, args, output: output.register_hook(gradients.append) and None  # noqa: E731
    model.get_input_embeddings().register_forward_hook(hook)
    step(bench.of_tasks(next(bench.random_batches(cfg, VOCABULARY)), 1))
    assert gradients[0].abs().sum() > 0
    assert not any(p.requires_grad for p in model.parameters())


def test_a_part_that_fails_or_is_left_out_does_not_lose_the_others_results(tmp_path, monkeypatch):
    def fail(cfg):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(gpu, "UP", [])
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    cfg = gpu.settings(["device=cpu", f"out={tmp_path / 'gpu.json'}"])
    result = {"failed": {}, "seconds": {}, "said": []}
    parts = {"a": fail, "b": lambda cfg: 1, "c": lambda cfg: gpu.give_up(signal.SIGALRM, None), "d": lambda cfg: 2}
    gpu.measure_parts(cfg, parts, result, 0.0)
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["b"] == 1
    assert written["failed"]["a"] == "ZeroDivisionError: by zero"
    assert written["failed"].keys() == {"a", "c", "d"}
