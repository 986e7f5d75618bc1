"""The panels of a sweep in W&B show its known numbers."""

import pytest

from bora.report.wandb import chart, long_table, panels
from tests.report.runs import KNOWN, evidence_of


def lines(panel) -> dict[str, list[tuple[float, float]]]:
    """Read a chart's lines by name, as W&B draws them: (x, y)."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in panel.table.data:
        point = dict(zip(panel.table.columns, row, strict=True))
        found.setdefault(point["lineKey"], []).append((point["step"], point["lineVal"]))
    return found


def test_the_lines_show_the_means_over_seeds(sweep, tmp_path):
    found = panels(evidence_of(tmp_path / "s"))
    x = [0, 1, 2, 3]  # log10 of 10 and 100, with the limits on either side
    overall = lines(found["perplexity by tau"])
    for place, name in ((1, "validation"), (2, "test perplexity")):
        expected = [(i, KNOWN[tau][place] + 0.1) for i, tau in zip(x, KNOWN, strict=True)]
        assert overall[name] == [pytest.approx(point) for point in expected]
    by_task = lines(found["perplexity by tau and task"])
    assert [y for _, y in by_task["bo"]] == pytest.approx([KNOWN[tau][3]["bo"] + 0.1 for tau in KNOWN])
    assert lines(found["distance by tau and task"])["cy"] == [(i, 3.0) for i in x]
    assert len(long_table(evidence_of(tmp_path / "s"))) == len(KNOWN) * 2 * 3


def test_a_sweep_of_only_the_limits_is_drawn():
    assert lines(chart([0.0, float("inf")], [("a", [2.0, 1.0])], "")) == {"a": [(-1, 2.0), (1, 1.0)]}
