"""Write a table of 1,000 tasks: functions of PyTorch's and transformers' modules, a task a file.

python experiments/learned/thousand.py OUT.csv
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from bora.data.stdlib import functions

PACKAGES, N_TASKS, N_FUNCTIONS, MIN_CHARACTERS = ("torch", "transformers"), 1000, 6, 100


def main() -> None:
    """Take the files with the most functions."""
    rows = []
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent
        for file in sorted(root.rglob("*.py")):
            task = ".".join((package, *file.relative_to(root).with_suffix("").parts))
            try:
                rows += [(task, text) for text in functions(file.read_text("utf-8")) if len(text) > MIN_CHARACTERS]
            except SyntaxError:  # of a later Python
                sys.stderr.write(f"skipped: {file}\n")
    table = pd.DataFrame(rows, columns=["task", "text"]).drop_duplicates()
    table = table.drop_duplicates("text", keep=False)  # transformers repeats code from model to model
    counts = table["task"].value_counts()
    tasks = counts.index[counts >= N_FUNCTIONS][:N_TASKS]
    print(f"{len(tasks)} tasks")
    table[table["task"].isin(tasks)].to_csv(sys.argv[1], index=False)


if __name__ == "__main__":
    main()
