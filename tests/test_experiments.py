"""What the scripts of experiments/ take from bora is there."""

import ast
from pathlib import Path

import pytest

from bora.commands.doctor import composed
from bora.runs.replay import read_config

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.mark.parametrize("script", sorted(str(p.relative_to(EXPERIMENTS)) for p in EXPERIMENTS.rglob("*.py")))
def test_imports_exist(script):
    tree = ast.parse((EXPERIMENTS / script).read_text("utf-8"))
    # A program that is handed to another process stands in a string.
    programs = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    trees = [tree, *(ast.parse(text) for text in programs if "\nimport " in text)]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bora"):
            exec(ast.unparse(node), {})


FOLDERS = sorted(
    {str(p.parent.parent.relative_to(EXPERIMENTS)) for p in EXPERIMENTS.rglob("tau=*/config.yaml")}
)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_run_of_any_age_can_be_done_again(folder):
    config = min((EXPERIMENTS / folder).glob("*/config.yaml"))
    then = read_config(config)
    cfg, _ = composed([], config.parent)
    for group in then:
        if group in ("tau", "seed", "trainer", "likelihood", "lora"):
            assert cfg[group] == then[group]
    assert cfg.prior.estimator == then.prior.get("estimator", "dense")
    assert cfg.data.max_tokens == then.data.max_tokens
    assert composed(["data=stdlib", "logger=none", "resume=never"], config.parent)[0].resume == "never"
