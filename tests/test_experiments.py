"""What the scripts of experiments/ take from bora is there."""

import ast
from pathlib import Path

import pytest

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
