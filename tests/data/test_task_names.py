"""Task names are normalised to one spelling; names that look alike are found."""

import pandas as pd
import pytest

from bora.data.task_names import look_alikes, normalise_names
from bora.errors import UserError


def test_spellings_of_a_name_are_merged_and_reported(caplog):
    names = pd.Series(["Jose\u0301", " Jos\u00e9\n", "A \u00a0\tB", "A B", "", " ", "ann", "Ann"], index=range(3, 11))
    found = normalise_names(names)
    assert found.tolist() == ["Jos\u00e9", "Jos\u00e9", "A B", "A B", "", "", "ann", "Ann"]
    assert found.index.equals(names.index)
    assert "2 name(s) are spelled in more than one way" in caplog.text
    assert r"'Jose\u0301' and ' Jos\xe9\n'" in caplog.text
    caplog.clear()
    normalise_names(pd.Series([" a", " a", "b", "", " "]))
    assert not caplog.text


@pytest.mark.parametrize("name", ["a\0", "\x1b[31m", "a\x7f", "\x9b"])
def test_a_control_character_in_a_name_is_refused(name):
    with pytest.raises(UserError, match=r"^the name '.*\\x.*' in row 1 \(counted from 0\)") as told:
        normalise_names(pd.Series(["fine", name]))
    assert str(told.value).isprintable()


def test_names_that_look_alike_are_found():
    names = ["Ann", "ann", "Bo", "A\u200bnn", "\uff22o", "Straße", "STRASSE", "Anna", "\ufb01n", "fin"]
    alike = ["Ann", "ann", "A\u200bnn"], ["Bo", "\uff22o"], ["Straße", "STRASSE"], ["\ufb01n", "fin"]
    assert look_alikes(names) == list(alike)
