"""Read the Python standard library as a table: a task is a package or module, a document a function.

The table has each function as a whole (the column text) and in parts: signature, docstring, summary (its first line),
body. It is real text that every user has. The functions come from the source files of the running
interpreter, so the documents differ a little from one Python version to the next.
"""

import ast
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa

from bora.data.columns import ANY, Columns, finish
from bora.data.errors import ReadError
from bora.lib.cache import cached_table, digest

# Some packages contain test code (`unittest/test` in Python 3.11), which is not part of a task.
TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})


def source_root() -> Path:
    """Find the folder of the standard library's source files."""
    return Path(sysconfig.get_path("stdlib"))


def source_files(module: str, root: Path) -> list[Path]:
    """List the source files of one package or module, such as asyncio or asyncio.events, sorted, without test folders."""
    path = root.joinpath(*module.split("."))
    single = path.with_name(f"{path.name}.py")
    files = [single] if single.is_file() else []
    files += sorted(path.rglob("*.py"))
    return [f for f in files if not TEST_FOLDERS.intersection(f.relative_to(root).parts)]


class Function(NamedTuple):
    """The source of a function or method, dedented, with its decorators; and its parts.

    Attributes:
        text: the whole source.
        signature: everything up to the docstring, or to the body if there is none.
        docstring: without its quotes and its indentation.
        summary: the docstring's first line.
        body: what follows the docstring.
    """

    text: str
    signature: str
    docstring: str
    summary: str
    body: str

    @classmethod
    def of(cls, text: str) -> "Function":
        """Split a function's source into its parts."""
        # A text with a line at the margin, inside a string, is not dedented.
        tree = ast.parse(f"if True:\n{text}" if text[0].isspace() else f"\n{text}")
        node = next(n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
        lines = ["", *text.split("\n")]
        first, docstring = node.body[0], ast.get_docstring(node) or ""
        begin = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))])
        begin = max(begin, node.lineno + 1)  # a function on one line is all signature
        signature, body = lines[1 : begin - 1], lines[(first.end_lineno or 0) if docstring else begin - 1 :]
        return cls(text, "\n".join(signature), docstring, docstring.partition("\n")[0], "\n".join(body))


def functions(source: str) -> Iterator[str]:
    """Yield the source of every function and method, dedented, with its decorators.

    A function inside a function belongs to the outer one's document, so no text occurs twice.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old string escapes in library code
        tree = ast.parse(source)
    # Not str.splitlines: that also breaks at form feeds, which ast does not count as lines.
    lines = source.split("\n")

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                yield textwrap.dedent("\n".join(lines[first - 1 : child.end_lineno]))
            else:
                yield from visit(child)

    return visit(tree)


def read(modules: Sequence[str], columns: Columns = ANY) -> pd.DataFrame:
    """Read one row for each function, see `finish`.

    Args:
        columns: columns out of those of Function, task (the module), package and file.

    Raises:
        ReadError: a module has no source file in this interpreter's library.
    """
    root = source_root()
    files = {module: source_files(module, root) for module in modules}
    for module, own in files.items():
        if not own:
            raise ReadError(
                "modules",
                module,
                f"{root} holds no source file of it; remove it from the list, or use a Python that has its library as "
                "source files",
            )
    # Parsing takes seconds, so its result is cached for these files.
    states = [(m, str(f), f.stat().st_size, f.stat().st_mtime_ns) for m, own in files.items() for f in own]
    key = digest(["functions", 3, sys.version, states])
    table = cached_table("stdlib", key, lambda: _parse(files, root))
    found = columns.find(table.column_names)
    return finish(table.select([*found.values()]).rename_columns([*found]))


def _parse(files: dict[str, list[Path]], root: Path) -> pa.Table:
    """Parse the modules' files into one row for each function."""
    rows = [
        (module, module.partition(".")[0], file.relative_to(root).as_posix(), *Function.of(text))
        for module, found in files.items()
        for file in found
        for text in functions(file.read_text("utf-8"))
    ]
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(c, pa.large_string()) for c in columns], ["task", "package", "file", *Function._fields])
