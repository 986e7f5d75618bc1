"""Any task's name becomes a folder's and a metric's."""

import re

from bora.lib.names import safe_names

ODD = [
    "Ann",
    "ann",
    "ANN",
    "ann-2",
    "hierarchical-mean",
    "Hierarchical Mean",
    "tasks.json",
    "../x",
    "..",
    ".hidden",
    "",
    "   ",
    "🙂",
    "🙃🙃",
    "a" * 300,
    "a" * 301,
    "Ærø",
    "A\u030aa\u0301",
    "\u00c5\u00e1",
    "東京",
    "-rf",
    "a/b\\c:d",
    "trailing.",
    "x\ny",
    "\x00",
]


def test_names_are_safe_and_different_everywhere():
    names = safe_names(ODD, reserved=("hierarchical-mean", "tasks.json"))
    assert list(names) == list(dict.fromkeys(ODD))
    for name in names.values():
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,66}", name)
        assert name[-1] not in ".-"
    assert len({n.lower() for n in names.values()} | {"hierarchical-mean", "tasks.json"}) == len(names) + 2
    assert names["Ann"] == "Ann"
    assert names["Ærø"] == "AEro"
    assert names["../x"] == "x"
