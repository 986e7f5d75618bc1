"""What is shown on a terminal of 80 columns, and in a log file."""

import io
import logging
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest

from bora.lib import console
from bora.lib.console import above_bars, close_bar, open_bar, progress, tell


class Terminal(io.StringIO):
    """A terminal of any width that interprets \\r and \\n."""

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
def test_lines_are_printed_above_the_bar_and_the_bar_is_erased(monkeypatch, logs):
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


def test_an_output_without_isatty_has_no_bar(monkeypatch):
    monkeypatch.setattr("sys.stdout", SimpleNamespace(write=len))
    assert not console.is_watched()


def test_a_log_file_gets_a_line_now_and_then_and_no_bar(monkeypatch, capsys):
    assert list(progress("abc", "short")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    assert list(progress(range(9), "long")) == list(range(9))
    out, err = capsys.readouterr()
    assert (out.splitlines(), err) == (["long: 0 of 9", "long: 4 of 9", "long: 8 of 9"], "")
