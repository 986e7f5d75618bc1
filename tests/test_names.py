"""Any task's name becomes a folder's and a metric's, and a line of Markdown."""

import re

import pytest

from bora.interop.card import escape
from bora.names import safe_names

ODD = [
    "Ann", "ann", "ANN", "ann-2", "hierarchical-mean", "Hierarchical Mean", "tasks.json", "../x", "..", ".hidden",
    "CON", "con.txt", "lpt9", "", "   ", "🙂", "🙃🙃", "a" * 300, "a" * 301, "Ærø", "A\u030aa\u0301", "\u00c5\u00e1",
    "東京", "-rf", "a/b\\c:d", "trailing.", "x\ny", "\x00",
]  # fmt: skip


def test_names_are_safe_and_different_everywhere():
    names = safe_names(ODD, reserved=("hierarchical-mean", "tasks.json"))
    assert list(names) == list(dict.fromkeys(ODD))
    for name in names.values():
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,66}", name)
        assert name[-1] not in ".-"
        assert name.split(".")[0].lower() not in ("con", "lpt9")
    assert len({n.lower() for n in names.values()} | {"hierarchical-mean", "tasks.json"}) == len(names) + 2
    assert names["Ann"] == "Ann"
    assert names["Ærø"] == "AEro"
    assert names["../x"] == "x"


@pytest.mark.parametrize("task", [t for t in ODD if t.strip() and "\x00" not in t])
def test_escaped_text_is_one_line_without_markup(task):
    assert "\n" not in escape(task)
    assert re.sub(r"\\(.)", r"\1", escape(task)) == " ".join(task.split())
    assert not re.search(r"(?<!\\)[|<`*_\[]", escape(task + "|<b>`*_[x]"))
