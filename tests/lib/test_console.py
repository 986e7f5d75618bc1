"""What is shown on a terminal of 80 columns, and in a log file."""

import io
import logging
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd
import pytest

from bora.lib import console
from bora.lib.console import above_bars, close_bar, open_bar, print_tasks, progress, short_path, tell


class Terminal(io.StringIO):
    """A terminal of any width that knows \\r and \\n."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        lines = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            lines.append(shown.rstrip())
        return lines


@pytest.mark.parametrize("logs", [False, True])
def test_lines_stand_above_the_bar_and_nothing_of_it_is_left(monkeypatch, logs):
    root, terminal = logging.getLogger(), Terminal()
    if logs:  # as in a run; without, as in a notebook
        monkeypatch.setattr(root, "handlers", [logging.StreamHandler(terminal)])
        monkeypatch.setattr(root, "level", logging.INFO)
    with redirect_stdout(terminal), above_bars():
        bar = open_bar(10, "epoch 1/2", done=4)
        assert bar.n == 4  # a resumed run's bar starts where the run is
        tell("first")
        bar.update()
        assert terminal.screen()[-1].startswith("epoch 1/2  40%|")
        tell("second\nthird")
        close_bar(bar)
        tell("last")
    assert terminal.screen() == ["first", "second", "third", "last", ""]


def test_a_log_file_has_no_bar_but_a_line_now_and_then(monkeypatch, capsys):
    assert list(progress("abc", "short")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    assert list(progress(range(9), "long")) == list(range(9))
    out, err = capsys.readouterr()
    assert (out.splitlines(), err) == (["long: 0 of 9", "long: 4 of 9", "long: 8 of 9"], "")


def test_the_table_fits_80_columns_and_has_the_gain(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")  # of 80 columns, without colours
    numbers = {"n_train": 12_345, "val_perplexity": 1234.5, "test_perplexity": 80.0, "distance": 12.3456}
    tasks = pd.DataFrame([{"task": "Anniken Scharning Huitfeldt", **numbers, "base_test_perplexity": 1000.0}])
    names = ("val_perplexity", "test_perplexity", "val_perplexity_macro", "test_perplexity_macro")
    with redirect_stdout(Terminal()) as terminal:
        print_tasks(tasks, dict.fromkeys(names, 80.0) | {"tau": 100, "base_test_perplexity": 64.0})
    shown = terminal.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    (row,) = (line for line in shown.splitlines() if "12.346" in line)
    assert [cell.strip() for cell in row.split("│")[2:-1]] == [
        "12,345",
        "1234.50",
        "80.00",
        "1000.00",
        "−92.0 %",
        "12.346",
    ]
    assert "+25.0 %" in next(line for line in shown.splitlines() if "all (by token)" in line)


def test_a_path_is_written_as_it_is_typed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert short_path(tmp_path / "outputs/first") == "outputs/first"
    assert short_path(Path("/etc")) == "/etc"
