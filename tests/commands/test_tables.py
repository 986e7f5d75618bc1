"""The tables on the terminal."""

import math
from contextlib import redirect_stdout

import pandas as pd

from bora.commands.tables import print_sweep, print_tasks
from tests.lib.test_console import Terminal


def test_the_table_fits_80_columns_and_has_the_gain(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")  # 80 columns, without colours
    numbers = {"n_train": 12_345, "val_perplexity": 1234.5, "test_perplexity": 80.0, "distance": 12.3456}
    tasks = pd.DataFrame([{"task": "Anniken Scharning Huitfeldt", **numbers, "base_test_perplexity": 1000.0}])
    names = ("val_perplexity", "test_perplexity", "val_perplexity_macro", "test_perplexity_macro")
    with redirect_stdout(Terminal()) as terminal:
        print_tasks(tasks, dict.fromkeys(names, 80.0) | {"tau": 100, "base_test_perplexity": 64.0})
    shown = terminal.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    (row,) = (line for line in shown.splitlines() if "12.346" in line)
    cells = [cell.strip() for cell in row.split("│")[2:-1]]
    assert cells == ["12,345", "1234.50", "80.00", "1000.00", "−92.0 %", "12.346"]
    assert "+25.0 %" in next(line for line in shown.splitlines() if "all (by token)" in line)


def test_validation_chooses_among_given_taus_evaluated_on_the_same_tokens(capsys):
    rows = [  # τ, data.max_tokens, tokens that it is measured on, validation perplexity
        (math.nan, "16", "x", 9.0),  # learned: its c was fitted to validation
        (1.0, "16", "x", 12.0),
        (10.0, "16", "x", 11.0),
        (10.0, "64", "y", 5.0),
        (math.nan, "99", "z", 7.0),
    ]
    runs = pd.DataFrame(rows, columns=["tau", "data.max_tokens", "tokens_of", "val_perplexity"])
    print_sweep(runs.assign(seed=0, test_perplexity=1.0, best_epoch=1), ["tau", "data.max_tokens"])
    marked = [line.split("│")[1:3] for line in capsys.readouterr().out.splitlines() if " * │" in line]
    assert sorted(tuple(map(str.strip, cells)) for cells in marked) == [("10", "16"), ("10", "64"), ("learn", "99")]
