"""conf/ with its comments: each key's value as written, and what the comment beside or above it says.

A YAML parser leaves comments out, but tells where every key and value ends. What then follows on the line
is the comment; lines of comment alone, further in than the key, go on with it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

TARGET = "_target_"  # Hydra's key for a function to call


@dataclass(frozen=True)
class Setting:
    """One key.

    Attributes:
        key: with its group's name and those of the mappings around it, as on the command line.
        value: as written; a mapping that names a function to call is written as that call.
        comment: one line; empty if there is none.
        is_call: the value names a function.
    """

    key: str
    value: str
    comment: str
    is_call: bool = False


@dataclass(frozen=True, eq=False)
class ConfigFile:
    """One file of conf/.

    Attributes:
        group: its folder's name; empty for a file that stands in none.
        option: its own name, without the ending.
        header: the paragraphs of comment at its beginning.
        settings: in the file's order.
        defaults: the entries of its defaults list: (group or file, option or None).
    """

    group: str
    option: str
    header: list[str]
    settings: list[Setting]
    defaults: list[tuple[str, str | None]]

    @property
    def parents(self) -> list[str]:
        """The files of the same group that it takes keys from."""
        return [name for name, option in self.defaults if option is None and name != "_self_"]


def read(file: Path, conf: Path) -> ConfigFile:
    """Read one file of the folder `conf`."""
    text = file.read_text("utf-8")
    lines, group = text.splitlines(), "" if file.parent == conf else file.parent.name
    n_header = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    header = [_words(line) for line in lines[:n_header]]
    package = "" if any(line.startswith("@package _global_") for line in header) else group
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode), file
    found = Source(lines, n_header)
    settings = [
        setting
        for key, value in root.value
        if key.value != "defaults"
        for setting in found.settings(key, value, f"{package}." if package else "")
    ]
    defaults = [e for key, value in root.value if key.value == "defaults" for e in _entries(value)]
    paragraphs = "\n".join(line for line in header if not line.startswith("@package")).split("\n\n")
    return ConfigFile(group, file.stem, [" ".join(p.split()) for p in paragraphs if p.strip()], settings, defaults)


def read_all(conf: Path) -> list[ConfigFile]:
    """Every file of conf/."""
    return [read(file, conf) for file in sorted(conf.rglob("*.yaml"))]


def undocumented(files: list[ConfigFile]) -> list[str]:
    """What nobody explains: keys without a comment, but for calls and for values of keys that are explained elsewhere."""
    known = {s.key for f in files for s in f.settings if s.comment}
    return [
        f"conf/{f.group}/{f.option}.yaml: {s.key}".replace("//", "/")
        for f in files
        for s in f.settings
        if not s.comment and not s.is_call and s.key not in known
    ]


@dataclass(frozen=True)
class Source:
    """A file's lines; the first `n_header` are its header."""

    lines: list[str]
    n_header: int

    def settings(self, key: yaml.Node, value: yaml.Node, prefix: str) -> Iterator[Setting]:
        """The keys at and below one key. A mapping is one setting if it is a call or has a comment itself."""
        name, comment = prefix + key.value, self.comment(key, value)
        if not isinstance(value, yaml.MappingNode):
            yield Setting(name, self.text(value), comment)
            return
        entries = {k.value: (k, v) for k, v in value.value}
        if TARGET in entries:
            inner = [self.comment(*entry) for entry in entries.values()]
            arguments = ", ".join(f"{k}={self.text(v)}" for k, (_, v) in entries.items() if k != TARGET)
            call = f"{entries[TARGET][1].value}({arguments})"
            yield Setting(name, call, "; ".join(c for c in (comment, *inner) if c), is_call=True)
        elif comment:
            yield Setting(name, _flow(value), comment)
        else:
            for k, v in value.value:
                yield from self.settings(k, v, f"{name}.")

    def text(self, node: yaml.Node) -> str:
        """A value as it is written, in one line."""
        first, last = node.start_mark, node.end_mark
        part = self.lines[first.line : last.line + 1]
        part[-1] = part[-1][: last.column]
        part[0] = part[0][first.column :]
        return " ".join(" ".join(part).split()).replace("[ ", "[")

    def comment(self, key: yaml.Node, value: yaml.Node) -> str:
        """What stands behind a value and goes on below, else right above its key."""
        in_lines_below = isinstance(value, yaml.CollectionNode) and not value.flow_style
        end = key.end_mark if in_lines_below else value.end_mark
        behind = self.lines[end.line][end.column :].removeprefix(":").strip()
        indent, found = key.start_mark.column, []
        if behind.startswith("#"):
            found = [behind]
            for line in self.lines[end.line + 1 :]:
                if not (line.strip().startswith("#") and _indent(line) > indent):
                    break
                found.append(line)
        else:
            for line in reversed(self.lines[self.n_header : key.start_mark.line]):
                if not (line.strip().startswith("#") and _indent(line) == indent):
                    break
                found.insert(0, line)
        return " ".join(_words(line) for line in found)


def _words(line: str) -> str:
    """A line of comment without its sign."""
    return line.strip().lstrip("#").strip()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _flow(node: yaml.Node) -> str:
    """A mapping in one line."""
    return yaml.serialize(_as_flow(node), width=10_000, allow_unicode=True).strip()


def _as_flow(node: yaml.Node) -> yaml.Node:
    if isinstance(node, yaml.CollectionNode):
        node.flow_style = True
    if isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            _as_flow(value)
    return node


def _entries(defaults: yaml.Node) -> Iterator[tuple[str, str | None]]:
    """(group, option) for each group of a defaults list, (file, None) for each file."""
    for entry in yaml.safe_load(yaml.serialize(defaults)):
        if isinstance(entry, str):
            yield entry, None
        else:
            for group, option in entry.items():
                yield group.removeprefix("override ").lstrip("/"), "null" if option is None else option
