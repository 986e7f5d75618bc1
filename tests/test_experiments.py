"""The studies' scripts fit today's bora, and their tables can be made from their archives of runs."""

import ast
import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bora.config.parse import parse
from bora.config.schema import flatten
from bora.report.evidence import Evidence
from bora.report.series import read_runs, series_of
from bora.report.tables import table1, table2
from bora.runs.archive import read_archive
from tests.shown import composed

REPOSITORY = Path(__file__).parents[1]
EXPERIMENTS = REPOSITORY / "experiments"


@pytest.mark.parametrize("script", sorted(str(p.relative_to(EXPERIMENTS)) for p in EXPERIMENTS.rglob("*.py")))
def test_a_scripts_imports_of_bora_exist(script):
    tree = ast.parse((EXPERIMENTS / script).read_text("utf-8"))
    # A program for another process is written in a string.
    programs = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    trees = [tree, *(ast.parse(text) for text in programs if "\nimport " in text)]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bora"):
            exec(ast.unparse(node), {})


@pytest.mark.processes
@pytest.mark.parametrize("script", sorted(str(p.relative_to(EXPERIMENTS)) for p in EXPERIMENTS.glob("*/[!g]*.sh")))
def test_a_studys_commands_compose(script, tmp_path):
    for name in ("bora", "python"):  # stand-ins that write down their arguments
        (tmp_path / name).write_text(f'#!/usr/bin/env bash\nprintf "%q " {name} "$@" >> "$LIST"; echo >> "$LIST"\n')
        (tmp_path / name).chmod(0o755)
    given = {name: str(tmp_path / name.lower()) for name in ("BORA", "LIST", "OUT")}
    given |= {"DATA": "t.csv", "PYTHON": sys.executable}
    subprocess.run([EXPERIMENTS / script], env=os.environ | given, cwd=REPOSITORY, check=True)
    commands = [shlex.split(line) for line in (tmp_path / "list").read_text().splitlines()]
    assert any("--archive" in command for command in commands)
    for command in commands:
        if command[1] == "run":
            composed([word for word in command[2:] if word != "-m"])


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("*/runs.csv.gz")), ids=lambda file: file.parent.name)
def test_archived_configs_fit_todays_schema(file):
    """So a new run is in the same series as an archived one with the same settings."""
    for run in read_archive(file):
        nested: dict = {}
        for key, value in run.config.items():
            *groups, name = key.split(".")
            functools.reduce(lambda group, part: group.setdefault(part, {}), groups, nested)[name] = value
        nested["logger"] = {"kind": "none", "task_lines": 0, "samples": 0}  # not part of what defines a series
        today = flatten(parse(nested).model_dump())
        found, expected = ({k: v for k, v in c.items() if not k.startswith("logger.")} for c in (today, run.config))
        assert found == expected


def cells(text: str) -> set[tuple[str, ...]]:
    """Return the rows of a page's tables, without the lines below their headers."""
    lines = [line.replace("\\", "") for line in text.splitlines() if line.startswith("|") and "--" not in line]
    return {tuple(cell.strip() for cell in line.split("|")) for line in lines}


@pytest.mark.parametrize(
    ("study", "readme_tables", "files"),
    [("stdlib", 2, ["noncentered-table2.md", "centered-table2.md"]), ("folketing", 2, ["table2.md"])],
)
def test_the_tables_equal_those_made_from_the_archive(study, readme_tables, files):
    runs, problems = read_runs([EXPERIMENTS / study])
    evidence = [Evidence(series) for series in series_of(runs)[0]]
    readme = cells((EXPERIMENTS / study / "README.md").read_text("utf-8"))
    assert problems == []
    assert sum(cells(table1(e).markdown()) <= readme for e in evidence) == readme_tables
    made = {table2(e).markdown() for e in evidence if len(e.series.taus) == 9}
    assert made == {(EXPERIMENTS / study / file).read_text("utf-8") for file in files}


def test_files_named_in_readmes_exist():
    for readme in EXPERIMENTS.rglob("README.md"):
        text = readme.read_text("utf-8")
        linked = re.findall(r"\]\(([^)#:]+)\)", text)
        named = re.findall(r"`([\w.-]+\.(?:csv|jsonl?|csv\.gz|png|md))`", text)
        for path in [*linked, *named]:
            assert (readme.parent / path).exists() or path == "runs.csv.gz", f"{readme}: {path}"
        for path in re.findall(r"(?:experiments|bora|conf)/[\w./-]+\.\w+", text):
            assert (REPOSITORY / path).exists(), f"{readme}: {path}"
