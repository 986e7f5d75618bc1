"""What the documentation shows can be typed and run, and every file of conf/ and every study is explained."""

import importlib
import json
import re
import sys
import tomllib

import pytest

from tests.shown import REPOSITORY, as_typed, blocks, commands, composed, is_target, makes, options, overrides

DOCS = REPOSITORY / "docs"
PAGES = {p.stem: p.read_text("utf-8") for p in sorted(DOCS.glob("*.md")) if p.stem != "LOG"}
PAGES["README"] = (REPOSITORY / "README.md").read_text("utf-8")


def shown(find) -> list:
    """Return each thing once, with the name of the first page that has it."""
    first: dict[str, str] = {}
    for name, page in PAGES.items():
        for thing in find(page):
            first.setdefault(thing, name)
    return [pytest.param(thing, id=f"{name}: {thing}"[:90]) for thing, name in first.items()]


@pytest.mark.parametrize(
    "command", [c for c in shown(commands) if re.match("bora (run|doctor) ", c.values[0]) and "RUN" not in c.values[0]]
)
def test_run_and_doctor_commands_compose(command):
    composed(overrides(command))


@pytest.mark.parametrize("command", [c for c in shown(commands) if re.match("bora (?!run|doctor)", c.values[0])])
def test_flags_of_the_other_commands_are_known(command, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, name, *arguments = as_typed(command)
    main = importlib.import_module(f"bora.commands.{name}").main
    code, _, err = call(main, *arguments)
    if "arguments are required" in err:  # running text may omit the folder
        code, _, err = call(main, "RUN", *arguments)
    # An unknown flag would print the usage; here the only problem is that there is no run.
    assert code == 2
    assert re.match("bora: .*(no such file|no such folder|no finished run)", err)


@pytest.mark.parametrize("option", shown(options))
def test_options_compose(option):
    composed(as_typed(option))


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_and_extras_exist_and_python_compiles(page):
    assert all(is_target(name) for name in makes(PAGES[page]))
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"pip install .*'\.\[([^]]+)\]", PAGES[page]):
        assert set(named.split(",")) <= set(extras)
    for block in blocks(PAGES[page], "python"):
        compile(block, page, "exec")


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks(PAGES["python"], "python"):
        exec(block, names)
    assert (tmp_path / "outputs/three/summary.json").is_file()
    assert names["run"].tasks == ["argparse", "optparse", "ssl"]
    shown = capsys.readouterr().out
    line = re.escape(blocks(PAGES["python"], "text")[0].splitlines()[0])
    # Its texts are Python's own, which differ by version.
    assert re.search(line if sys.version_info[:2] == (3, 11) else re.sub(r"\d+\\\.\d+", r"[\\d.]+", line), shown)
    assert shown.count("--- ") == 3  # one for each speaker


def test_the_notebook_is_committed_without_outputs():
    # make docs runs it.
    cells = json.loads((DOCS / "notebook.ipynb").read_text("utf-8"))["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_every_file_of_conf_is_shown_and_explained():
    conf = REPOSITORY / "conf"
    for file in conf.rglob("*.yaml"):
        assert f"../{file.relative_to(REPOSITORY).as_posix()}\n" in PAGES["configuration"], file
        if file.parent.name != "experiment":  # they repeat keys that are explained in their own files
            keys = [line for line in file.read_text("utf-8").splitlines() if re.match(r"\w+: *[^\s#]", line)]
            unexplained = [line for line in keys if "#" not in line and not line.startswith("defaults:")]
            assert not unexplained, file


def test_every_study_has_a_page():
    studies = {readme.parent.name for readme in (REPOSITORY / "experiments").glob("*/README.md")}
    assert studies == {page.stem for page in (DOCS / "experiments").glob("*.md")} - {"index"}


def test_lamps_files_become_tables_of_histories_and_questions(tmp_path):
    names: dict = {}
    exec(blocks(PAGES["prompts"], "python")[0], names)
    given = "Generate a headline for the following article: "
    users = [
        {"id": "7", "input": given + "it: rained", "profile": [{"id": "70", "text": "sun", "title": "Sunny"}] * 2},
        {"id": "8", "input": given + "snow", "profile": [{"id": "80", "text": "article: fog", "title": "Foggy"}]},
    ]
    gold = {"task": "LaMP_4", "golds": [{"id": "8", "output": "White"}, {"id": "7", "output": "Wet"}]}
    for file, content in (("questions.json", users), ("outputs.json", gold)):
        (tmp_path / file).write_text(json.dumps(content))
    history, asked = names["read_lamp"](tmp_path / "questions.json", tmp_path / "outputs.json")
    assert history.to_numpy().tolist() == [["7", "sun", "Sunny"], ["7", "sun", "Sunny"], ["8", "article: fog", "Foggy"]]
    assert asked.to_numpy().tolist() == [["7", "it: rained", "Wet"], ["8", "snow", "White"]]
    assert list(history) == list(asked) == ["user", "input", "output"]
