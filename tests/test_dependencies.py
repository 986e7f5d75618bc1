"""pyproject.toml names every package that bora imports; none is there only because another package requires it."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
WITH_TORCH = {"triton"}  # comes with CUDA builds of torch, and is used only on a GPU
DISTRIBUTIONS = packages_distributions()  # reads every installed package's list of files


def canonical(requirement: str) -> str:
    """Return the name in `requirement`, normalised as in PEP 503."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def imported(source: Path, everywhere: bool) -> set[str]:
    """Return the top-level modules that `source` imports: `everywhere`, or only at the top level of the file."""
    tree = ast.parse(source.read_text())
    names = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"bora"} - WITH_TORCH


def undeclared(modules: set[str], requirements: set[str]) -> set[str]:
    """Return the `modules` that no distribution among `requirements` provides."""
    return {m for m in modules if not {canonical(d) for d in DISTRIBUTIONS.get(m, [m])} & requirements}


def test_every_import_is_a_declared_dependency():
    declared = {canonical(r) for r in PROJECT["dependencies"]}
    for extra in PROJECT["optional-dependencies"].values():
        declared |= {canonical(r) for r in extra}
    sources = sorted((REPOSITORY / "bora").rglob("*.py"))
    assert {str(s): u for s in sources if (u := undeclared(imported(s, everywhere=True), declared))} == {}


def test_no_extra_is_needed_to_import_a_command():
    core = {canonical(r) for r in PROJECT["dependencies"]}
    # These need the extra `report`, and are imported only to make a report.
    drawing = {"curves.py", "drawing.py", "figures.py", "fonts.py", "pictures.py"}
    sources = [s for s in sorted((REPOSITORY / "bora").rglob("*.py")) if s.name not in drawing]
    assert {str(s): u for s in sources if (u := undeclared(imported(s, everywhere=False), core))} == {}


def test_constraints_pin_no_package_that_torch_pins_itself():
    """CUDA builds of torch require one version of Triton, CPU builds none, so that a wrong pin might not show here."""
    pinned = {canonical(line) for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line[0] != "#"}
    assert {name for name in pinned if name.startswith(("triton", "nvidia", "cuda"))} == set()
