"""The directive `{configuration}`: conf/ as tables, made anew at each build, and the role `{conf}` to link to a key.

A key that nobody explains is a warning, and with it a failed build.
"""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.roles import XRefRole
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from yaml_comments import ConfigFile, Setting, read_all, undocumented

log = logging.getLogger(__name__)
CONF = Path(__file__).parents[2] / "conf"
MAIN, SHARED = "config", "_shared"


class Configuration(SphinxDirective):
    """A section for the main file, for each group in the order in which it is composed, and for other commands."""

    def run(self) -> list[nodes.Node]:
        files = read_all(CONF)
        for file in CONF.rglob("*.yaml"):
            self.env.note_dependency(str(file))
        for line in undocumented(files):
            log.warning("%s has no comment", line, location=self.get_location())
        self.explained = {s.key for f in files for s in f.settings if s.comment}
        self.targets: set[str] = set()
        main = next(f for f in files if f.option == MAIN)
        sections = [self.section("The run itself", MAIN, main.header, [self.keys(main.settings)])]
        for group, default in main.defaults:
            if default is not None:
                sections.append(self.group(group, [f for f in files if f.group == group], default))
        for f in files:
            if not f.group and f is not main:
                content = self.keys(f.settings, of_a_run=False)
                sections.append(self.section(f"`bora {f.option}`", f.option, f.header, [content]))
        return sections

    def group(self, name: str, files: list[ConfigFile], default: str) -> nodes.section:
        """What can be chosen, what all choices have, and what each has beside that."""
        title, shared = f"`{name}`", [f for f in files if f.option == SHARED]
        options = sorted(set(files) - set(shared), key=lambda f: (f.option != default, f.option))
        if len(options) == 1:
            (only,) = options
            return self.section(title, name, only.header, [self.keys(only.settings)])
        rows = []
        for file in options:
            mark = [nodes.emphasis("", " default")] if file.option == default else []
            choice = [nodes.literal("", f"{name}={file.option}"), *mark]
            rows.append([choice, list(inline("".join(file.header[:1])))])
        content: list[nodes.Node] = [table(["choice", "what it is"], rows, "conf-choices")]
        for file in shared:
            content += [nodes.paragraph("", "Every choice has:"), self.keys(file.settings)]
        content += [self.option(f) for f in options if f.settings]
        return self.section(title, name, shared[0].header if shared else [], content)

    def option(self, file: ConfigFile) -> nodes.section:
        """One file of a group: the rest of its header, and its own keys."""
        name = f"{file.group}={file.option}"
        others = [f"It has the keys of `{file.group}={p}`, but for:" for p in file.parents if p != SHARED]
        return self.section(f"`{name}`", name, file.header[1:] + others, [self.keys(file.settings)])

    def section(self, title: str, name: str, text: list[str], content: list[nodes.Node]) -> nodes.section:
        """A section that `[…](#conf-NAME)` leads to."""
        label = nodes.make_id(f"conf-{name}")
        section = nodes.section(ids=[label], names=[label])
        domain = self.env.domains.standard_domain
        domain.note_hyperlink_target(label, self.env.docname, label, title.replace("`", ""))
        section += nodes.title("", "", *inline(title))
        section += [nodes.paragraph("", "", *inline(paragraph)) for paragraph in text]
        section += content
        return section

    def keys(self, settings: list[Setting], of_a_run: bool = True) -> nodes.table:
        """Key, default, meaning; a run's key is a target where it is first explained, and a link to there elsewhere."""
        rows = []
        for setting in settings:
            key: nodes.Node = nodes.literal("", setting.key)
            if of_a_run and setting.comment and setting.key not in self.targets:
                self.targets.add(setting.key)
                key["ids"] = [nodes.make_id(f"conf-{setting.key}")]
                self.env.domains.standard_domain.note_object("conf", setting.key, key["ids"][0], key)
            elif of_a_run and setting.key in self.explained:
                key = self.link(setting.key)
            value = "needed" if setting.value == "???" else setting.value
            meaning = setting.comment or ("what is called with these keys" if setting.is_call else "")
            rows.append([[key], [nodes.literal("", value)], list(inline(meaning))])
        return table(["key", "default", "meaning"], rows, "conf-keys")

    def link(self, key: str) -> nodes.Node:
        (link,), _ = XRefRole()("std:conf", key, key, self.lineno, self.state.inliner)
        return link


def inline(text: str) -> Iterator[nodes.Node]:
    """Text in which backticks mark code, and nothing else is meant as markup."""
    for part, is_code in zip(text.split("`"), itertools.cycle([False, True]), strict=False):
        if part:
            yield nodes.literal("", part) if is_code else nodes.Text(part)


def table(header: list[str], rows: Iterable[list[list[nodes.Node]]], kind: str) -> nodes.table:
    """A table whose cells are lists of inline nodes."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in header), cols=len(header))
    group += nodes.thead("", _row([[nodes.Text(word)] for word in header]))
    group += nodes.tbody("", *map(_row, rows))
    return nodes.table("", group, classes=[kind, "colwidths-auto"])


def _row(cells: list[list[nodes.Node]]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))


def setup(app: Sphinx) -> dict:
    app.add_object_type("conf", "conf", objname="configuration key")
    app.add_role_to_domain("std", "conf", XRefRole(innernodeclass=nodes.literal, warn_dangling=True), override=True)
    app.add_directive("configuration", Configuration)
    return {"parallel_read_safe": True}
