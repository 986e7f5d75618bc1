"""The house rules: which folder may import which, and where each framework may be imported."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import bora

PACKAGE = Path(bora.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
# A folder or module may import itself and those before it.
ORDER = [["errors"], ["lib", "config"], ["model"], ["bayes"], ["data"], ["runs"], ["train"], ["report"], ["use"]]
ORDER += [["commands"], ["api"], ["cli"], ["run", "__main__"], ["__init__"]]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
# Framework → where it may be imported.
PLACES = {
    "lightning": ("train/", "data/module.py"),
    "hydra": ("config/compose.py", "commands/", "api/"),
    "omegaconf": ("config/compose.py", "commands/"),
    "transformers": ("model/", "data/tokens.py", "data/chat.py"),
    "wandb": ("runs/trackers/wandb.py", "report/wandb.py"),
    "mlflow": ("runs/trackers/mlflow.py",),
    "tensorboard": ("runs/trackers/tensorboard.py",),
}
# These files of use/ pass on transformers' own objects: a tokenizer, a GenerationConfig, a model to save.
EXCEPTIONS = {("transformers", f"use/{name}.py") for name in ("restore", "sampling", "generate", "export", "samples")}


def imports() -> Iterator[tuple[str, str, list[str]]]:
    """Yield for each import of the package the file, its folder or module, and the imported name's parts."""
    for source in SOURCES:
        file = source.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"bora.{a.name}" for a in node.names] if node.module == "bora" else [str(node.module)]
            for name in names:
                yield file, file.split("/")[0].removesuffix(".py"), name.split(".")


def test_no_folder_imports_a_later_one():
    ours = [(file, room, name) for file, room, name in imports() if name[0] == "bora" and len(name) > 1]
    assert [(file, ".".join(name)) for file, room, name in ours if RANK[name[1]] > RANK[room]] == []


def test_each_framework_is_imported_only_in_its_place():
    outside = {
        (framework, file)
        for file, _, name in imports()
        for framework, places in PLACES.items()
        if framework in name and name[0] != "bora" and not file.startswith(places)
    }
    assert outside - EXCEPTIONS == set()


def test_bayes_is_pure_torch():
    allowed = set(sys.stdlib_module_names) | {"torch", "bora.bayes", "bora.model", "bora.errors"}
    roots = {(file, ".".join(name[:2]) if name[0] == "bora" else name[0]) for file, _, name in imports()}
    assert {(file, root) for file, root in roots if file.startswith("bayes/") and root not in allowed} == set()


def test_few_modules_are_at_the_top_level_and_no_line_skips_the_formatter():
    assert len([s for s in SOURCES if s.parent == PACKAGE and s.name != "__init__.py"]) <= 5
    here = Path(__file__)
    everything = [*SOURCES, *(f for f in here.parent.rglob("*.py") if f != here)]
    assert [str(f) for f in everything if "fmt: skip" in f.read_text("utf-8")] == []
