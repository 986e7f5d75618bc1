"""What the documentation says can be typed and run; and nothing in conf/ or the package is left unexplained."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest
from yaml_comments import read, read_all, undocumented

import bora
from bora.config import config_folder
from tests.shown import REPOSITORY, as_typed, blocks, commands, composed, is_target, makes, options, overrides

DOCS = REPOSITORY / "docs"
PAGES = {p.stem: p.read_text("utf-8") for p in sorted(DOCS.glob("*.md")) if p.stem != "LOG"}


def shown(find) -> list:
    """Each thing once, under the name of its first page."""
    first: dict[str, str] = {}
    for name, page in PAGES.items():
        for thing in find(page):
            first.setdefault(thing, name)
    return [pytest.param(thing, id=f"{name}: {thing}"[:90]) for thing, name in first.items()]


@pytest.mark.parametrize(
    "command", [c for c in shown(commands) if re.match("bora (run|doctor) ", c.values[0]) and "RUN" not in c.values[0]]
)
def test_commands_of_hydra_compose(command):
    composed(overrides(command))


@pytest.mark.parametrize("command", [c for c in shown(commands) if re.match("bora (?!run|doctor)", c.values[0])])
def test_flags_of_the_other_commands_are_known(command, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, name, *arguments = as_typed(command)
    main = importlib.import_module(f"bora.commands.{name}").main
    code, _, err = call(main, *arguments)
    if "arguments are required" in err:  # running text may leave the folder out
        code, _, err = call(main, "RUN", *arguments)
    # An unknown flag is told by a usage; here all that is amiss is that nothing has been run.
    assert code == 2
    assert re.match("bora: .*(no such file|no such folder|no finished run)", err)


@pytest.mark.parametrize("option", shown(options))
def test_options_compose(option):
    composed(as_typed(option))


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_extras_and_python_are_what_they_seem(page):
    assert all(is_target(name) for name in makes(PAGES[page]))
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"pip install '(?:bora|\.)\[([^]]+)\]", PAGES[page]):
        assert set(named.split(",")) <= set(extras)
    for block in blocks(PAGES[page], "python"):
        compile(block, page, "exec")


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks(PAGES["python"], "python"):
        exec(block, names)
    assert (tmp_path / "outputs/three/summary.json").is_file()
    assert list(names["model"].tasks) == ["argparse", "optparse", "ssl"]
    assert capsys.readouterr().out.count(" | ") == 3  # who answers | what


def test_every_key_of_conf_has_a_comment():
    assert undocumented(read_all(config_folder())) == []


def test_comments_are_read_beside_below_and_above_a_key(tmp_path):
    (tmp_path / "group").mkdir()
    file = tmp_path / "group" / "option.yaml"
    file.write_text(
        "# What it is.\n#\n# And more\n# of it.\ndefaults: [_shared, _self_]\n"
        "beside: 1  # one thing,\n           # and another\n"
        "# above\nname: 'a # b'\nbare: null\n"
        "split:\n  part: [1,\n    2]  # parts\n  # of the split\n  seed: 0\n"
        "whole:  # all of it\n  a: 1\ncall:\n  _target_: f\n  x: ${bare}\n"
    )
    found = read(file, tmp_path)
    assert found.header == ["What it is.", "And more of it."]
    assert found.parents == ["_shared"]
    assert [(s.key, s.value, s.comment) for s in found.settings] == [
        ("group.beside", "1", "one thing, and another"),
        ("group.name", "'a # b'", "above"),
        ("group.bare", "null", ""),
        ("group.split.part", "[1, 2]", "parts"),
        ("group.split.seed", "0", "of the split"),
        ("group.whole", "{a: 1}", "all of it"),
        ("group.call", "f(x=${bare})", ""),
    ]
    assert undocumented([found]) == ["conf/group/option.yaml: group.bare"]


def test_every_public_module_and_every_experiment_has_its_place():
    reference = "".join(p.read_text("utf-8") for p in (DOCS / "api").glob("*.md"))
    package = Path(bora.__file__).parent
    for folder in ("data", "model", "interop", "results"):
        for file in (package / folder).glob("[!_]*.py"):
            assert f".. automodule:: bora.{folder}.{file.stem}\n" in reference
    studies = {readme.parent.name for readme in (REPOSITORY / "experiments").glob("*/README.md")}
    assert studies == {page.stem for page in (DOCS / "experiments").glob("*.md")} - {"index"}
