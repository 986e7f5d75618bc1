"""Any task's name becomes a folder's and a metric's, and a line of Markdown."""

import re

import pandas as pd
import pytest

from bora.data.task_names import look_alikes, normalise_names
from bora.errors import UserError
from bora.lib.names import safe_names
from bora.use.card import escape

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


@pytest.mark.parametrize("task", [t for t in ODD if t.strip() and "\x00" not in t])
def test_escaped_text_is_one_line_without_markup(task):
    assert "\n" not in escape(task)
    assert re.sub(r"\\(.)", r"\1", escape(task)) == " ".join(task.split())
    assert not re.search(r"(?<!\\)[|<`*_\[]", escape(task + "|<b>`*_[x]"))


def test_a_name_has_one_spelling(caplog):
    names = pd.Series(["Jose\u0301", " Jos\u00e9\n", "A \u00a0\tB", "A B", "", " ", "ann", "Ann"], index=range(3, 11))
    found = normalise_names(names)
    assert found.tolist() == ["Jos\u00e9", "Jos\u00e9", "A B", "A B", "", "", "ann", "Ann"]
    assert found.index.equals(names.index)
    assert "2 task(s) are spelled in more than one way" in caplog.text
    assert r"'Jose\u0301' and ' Jos\xe9\n'" in caplog.text


def test_one_spelling_each_is_not_worth_a_word(caplog):
    normalise_names(pd.Series([" a", " a", "b", "", " "]))
    assert not caplog.text


@pytest.mark.parametrize("name", ["a\0", "\x1b[31m", "a\x7f", "\x9b"])
def test_a_control_character_is_no_part_of_a_name(name):
    with pytest.raises(UserError, match=r"^the task's name '.*\\x.*' in row 1 \(counted from 0\)") as told:
        normalise_names(pd.Series(["fine", name]))
    assert str(told.value).isprintable()


def test_names_that_look_alike_are_found():
    names = ["Ann", "ann", "Bo", "A\u200bnn", "\uff22o", "Straße", "STRASSE", "Anna", "\ufb01n", "fin"]
    assert look_alikes(names) == [
        ["Ann", "ann", "A\u200bnn"],
        ["Bo", "\uff22o"],
        ["Straße", "STRASSE"],
        ["\ufb01n", "fin"],
    ]
