"""Reports and cards show any task's name as text: nothing in it runs, links or breaks a table."""

import json
import re
from html import unescape
from html.parser import HTMLParser

import pandas as pd
import pytest
import yaml
from markdown_it import MarkdownIt

from bora.commands import export, report
from bora.lib.names import latex, markdown, one_line
from bora.report.drawing import shorten
from bora.report.tables import ReportTable
from tests.conftest import table
from tests.report.runs import KNOWN, write_run

NASTY = [
    "<script>alert(1)</script>",
    "--><img src=x onerror=alert(1)>",
    "a|b",
    "`x` ``` y",
    "two\nlines\r\nand <b>",
    "[x](javascript:alert(1))",
    "![x](http://127.0.0.1/x)",
    "<javascript:alert(1)>",
    "$\\frac{1}$ $",
    "\\input{x}",
    "[5cm] a",
    "* b",
    "# c #",
    "{{ 7 * 7 }}",
    "&lt;i&gt;",
    "**bold** _it_ ~~gone~~",
    "100 % & more ^ ~",
    "[x]: http://127.0.0.1/x",
    "[a][x]",
]
PATHS = ["../x", "..\\x", ".", "..", "/etc/passwd", "~", "-rf", "n" * 300, "n" * 299 + "m", "a/b", "a-b", "A-B"]
MARKS = ["👩\u200d👧", "水", "*?<>|:\"'`$(x)", "${tau}", "{task}", "[red]x[/red]", "=1+1", "%s %d"]
NAMES = [*PATHS, *MARKS, "hierarchical-mean"]


@pytest.fixture(scope="module")
def report_folder(tmp_path_factory):
    """Write a report on runs whose tasks, corpus and folder have nasty names; return its folder."""
    folder = tmp_path_factory.mktemp("<b>r&")
    known = {
        tau: (lr, val, test, {name: 10.0 + i + lr for i, name in enumerate(NASTY)})
        for tau, (lr, val, test, _) in KNOWN.items()
    }
    for tau in known:
        for seed in (0, 1):
            run = folder / f"s/tau={tau:g},seed={seed}"
            write_run(run, tau, seed, seed * 0.1, known, data__name="<i>corpus</i>")
    (folder / "s/<u>other").mkdir()
    (folder / "s/<u>other/failed.json").write_text('{"error": "task \'<script>2</script>\' is left", "exit_code": 2}')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["bora report", "s"])
        report.main()
    return folder / "s/report"


class Page(HTMLParser):
    """A page's elements with their attributes, and its text by element."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data):
        self.text += data
        if self.cells:
            self.cells[-1] += data


def harmless(page: Page) -> None:
    """Assert that nothing in a page runs, is fetched or links elsewhere."""
    assert not {tag for tag, _ in page.elements} & {"script", "img", "iframe", "object", "link", "i", "u"}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#")


def test_the_html_page_shows_names_literally(report_folder):
    page = Page((report_folder / "index.html").read_text("utf-8"))
    harmless(page)
    cells = [one_line(cell) for cell in page.cells]
    assert all(one_line(name) in cells for name in NASTY)
    titles = re.findall("<g><title>([^<>]*)</title>", (report_folder / "index.html").read_text("utf-8"))
    assert {unescape(title) for title in titles} == {one_line(name) for name in NASTY}
    assert "<i>corpus</i>" in page.text
    assert "task '<script>2</script>' is left" in page.text
    assert "<u>other" in page.text


def test_the_markdown_tables_show_names_literally(report_folder):
    for name in ("table1", "table2", "claims"):
        source = (report_folder / f"{name}.md").read_text("utf-8")
        page = Page(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(source))
        harmless(page)
        assert not {tag for tag, _ in page.elements} & {"a", "em", "code", "s"}
        if name == "table2":
            cells = [cell.strip() for cell in page.cells]
            assert {one_line(n) for n in NASTY} <= set(cells)


def test_the_latex_tables_keep_their_shape(report_folder):
    rows = (report_folder / "table2.tex").read_text("utf-8").splitlines()
    rows = [row for row in rows if row.endswith(r"\\") and "&" in row]
    assert len(rows) == len(NASTY) + 2  # the header, and all tasks
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(KNOWN)
        assert row[0] not in "[*"  # LaTeX would read it as the argument of a line break
        plain = re.sub(r"\\[\\&%$#_{}]", "", row)
        assert plain.count("{") == plain.count("}")
        assert "%" not in plain
        assert "#" not in plain
        commands = set(re.findall(r"\\[a-zA-Z]+", row))
        assert commands <= {r"\textbackslash", r"\textasciitilde", r"\textasciicircum", r"\textbf", r"\tau", r"\infty"}


@pytest.mark.parametrize("name", NASTY)
def test_text_survives_its_escaping(name):
    shown = Page(MarkdownIt("commonmark").render(f"# {markdown(name)}"))
    assert [tag for tag, _ in shown.elements] == ["h1"]
    assert shown.text.strip() == one_line(name)
    assert "\n" not in latex(name)
    assert not re.search(r"(?<!\\)\$", shorten(name))  # matplotlib would read it as mathematics


def test_a_task_may_have_any_name_and_model_cards_show_it_literally(command, call, tmp_path):
    names = [*(one_line(name) for name in NASTY), *NAMES]  # the reader refuses control characters
    table(tmp_path / "t.csv", dict.fromkeys(names, 8))
    data = "data=table data.path=t.csv data.min_documents=5 data.max_tokens=64 data.drop_duplicates=false".split()
    how = "trainer.max_steps=1 lora.rank=1 logger=none hydra.run.dir=run".split()
    code, out, err = command(*data, *how, "data.n_tasks=null", "data.prompt='<b>[x](javascript:1) ```'")
    assert (code, err, "[red]x[/red]" in out) == (0, "", True)
    # A run directory from elsewhere may have odd texts in its files, and the card shows them, too.
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    summary |= {"data": "<i>corpus</i>", "data_sha256": "<script>3</script>"}
    summary["versions"]["torch"] = "[x](javascript:2)"
    (tmp_path / "run/summary.json").write_text(json.dumps(summary))
    assert call(export.main, "run", "out")[0] == 0
    titles = set()
    for file in (tmp_path / "out").glob("*/README.md"):
        _, front, body = file.read_text("utf-8").split("---\n", 2)
        assert set(yaml.safe_load(front)) == {"base_model", "library_name", "pipeline_tag", "tags"}
        page = Page(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(body))
        harmless(page)
        assert not {tag for tag, _ in page.elements} & {"a", "em", "b", "s"}
        assert "<i>corpus</i>" in page.text
        titles.add(page.text.split("\n")[0])
    assert titles == set(names) | {"the hierarchical mean"}
    folders = json.loads((tmp_path / "out/tasks.json").read_text("utf-8"))["tasks"]
    assert sorted(folders.values()) == sorted(names)
    assert {path.name for path in tmp_path.iterdir()} == {"t.csv", "run", "out"}  # no name has led elsewhere


def test_a_bold_cell_is_escaped_once():
    cells = pd.DataFrame({"task": ["a*b"], "x": ["1.0"]})
    table = ReportTable("t", cells, cells, pd.DataFrame({"task": [True], "x": [True]}), "Caption.")
    assert table.markdown().splitlines()[2].split() == ["|", r"**a\*b**", "|", "**1.0**", "|"]
    assert "<strong>a*b</strong>" in table.html()
