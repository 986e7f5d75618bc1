"""What the package imports is what pyproject.toml names: nothing comes along only because another package asks for it."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
WITH_TORCH = {"triton"}  # comes with torch for a GPU, and is used there alone
DISTRIBUTIONS = packages_distributions()  # reads every installed package's list of files


def canonical(requirement: str) -> str:
    """The name in `requirement`, as PEP 503 compares names."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def imported(source: Path, everywhere: bool) -> set[str]:
    """Top-level modules that `source` imports: `everywhere`, or only where importing the file reaches them."""
    tree = ast.parse(source.read_text())
    names = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"bora"} - WITH_TORCH


def undeclared(modules: set[str], requirements: set[str]) -> set[str]:
    """`modules` of which no distribution is among `requirements`."""
    return {m for m in modules if not {canonical(d) for d in DISTRIBUTIONS.get(m, [m])} & requirements}


def test_every_import_is_a_declared_dependency():
    declared = {canonical(r) for r in PROJECT["dependencies"]}
    for extra in PROJECT["optional-dependencies"].values():
        declared |= {canonical(r) for r in extra}
    sources = sorted((REPOSITORY / "bora").rglob("*.py"))
    assert {str(s): u for s in sources if (u := undeclared(imported(s, everywhere=True), declared))} == {}


def test_no_extra_is_needed_to_import_a_command():
    core = {canonical(r) for r in PROJECT["dependencies"]}
    # Of the report extra, imported where a report is asked for.
    drawing = {"curves.py", "drawing.py", "figures.py", "fonts.py", "pictures.py"}
    sources = [s for s in sorted((REPOSITORY / "bora").rglob("*.py")) if s.name not in drawing]
    assert {str(s): u for s in sources if (u := undeclared(imported(s, everywhere=False), core))} == {}


def test_no_version_is_pinned_that_torch_pins_itself():
    """Torch for GPUs asks for one Triton, torch for processors for none, so that the wrong one would not show here."""
    pinned = {canonical(line) for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line[0] != "#"}
    assert {name for name in pinned if name.startswith(("triton", "nvidia", "cuda"))} == set()
