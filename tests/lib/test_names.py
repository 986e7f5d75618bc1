"""Any task's name becomes a safe name for a folder and a metric."""

import math
import re

from bora.lib.names import format_tau, latex, safe_names
from tests.lib.test_escaping import NAMES, NASTY

ALIKE = ["Ann", "ann", "ANN", "ann-2", "hierarchical-mean", "Hierarchical Mean", "tasks.json", "🙂", "🙃🙃", ""]
ODD = [*NASTY, *NAMES, *ALIKE, ".hidden", "   ", "Ærø", "A\u030aa\u0301", "\u00c5\u00e1", "trailing.", "\x00"]


def test_safe_names_are_valid_and_distinct_on_any_file_system():
    names = safe_names(ODD, reserved=("hierarchical-mean", "tasks.json"))
    assert list(names) == list(dict.fromkeys(ODD))
    for name in names.values():
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,70}", name)
        assert name[-1] not in ".-"
    assert len({n.lower() for n in names.values()} | {"hierarchical-mean", "tasks.json"}) == len(names) + 2
    assert names["ANN"] == "ANN"
    assert names["Ærø"] == "AEro"
    assert safe_names(ODD[::-1], reserved=("hierarchical-mean", "tasks.json")) == names


def test_tau_and_latex_are_written_as_in_the_paper():
    assert [format_tau(t) for t in (0.0, 1.0, 137.28, 1e4, 2e5, math.inf)] == ["0", "1", "137.28", "10⁴", "200000", "∞"]
    assert latex("50 % of a_b & τ = 10⁴") == r"50 \% of a\_b \& $\tau$ = 10$^4$"
