"""Print how much better some runs are than others: paired nats a token on test, with a 95 % bootstrap over tasks.

    PYTHONPATH=. python experiments/compare.py 'schedule/stdlib/*cosine' 'schedule/stdlib/*constant'

A pattern is of folders under experiments/, as the archives have them, without τ and seed; runs are paired by those, and
averaged over seeds. Below 0 the first are better.
"""

import re
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd

from bora.lib.names import format_tau
from bora.report.intervals import Interval, bootstrap, weighted_mean
from bora.runs.archive import RunRecord, read_archive

HERE = Path(__file__).resolve().parent


def difference(pairs: Sequence[tuple[RunRecord, RunRecord]]) -> Interval:
    """Return how much more nats a token the first of each pair has on test; a pair is of one seed."""
    nll = pd.concat([ours.per_task["test_nll"] - theirs.per_task["test_nll"] for ours, theirs in pairs], axis=1)
    tokens = pairs[0][0].per_task["test_tokens"].to_numpy(float)
    return bootstrap(weighted_mean, nll.mean(axis=1).to_numpy(), tokens)


def find(pattern: str) -> dict[tuple[str, int], RunRecord]:
    """Find the runs of a pattern, by τ, in words, and seed."""
    found: dict[tuple[str, int], RunRecord] = {}
    for run in read_archive(HERE / pattern.partition("/")[0] / "runs.csv.gz"):
        folder = re.sub(r"/tau=[^,]*,seed=\d+,?", "/", str(run.folder.relative_to(HERE))).rstrip("/")
        if fnmatch(folder, pattern):
            key = format_tau(run.tau) if run.learned is None else "learned", run.summary["seed"]
            if key in found:
                sys.exit(f"{pattern}: {found[key].folder} and {run.folder} have the same τ and seed")
            found[key] = run
    return found


def main() -> None:
    """Compare the runs of two patterns, at each τ that both have."""
    ours, theirs = map(find, sys.argv[1:])
    both = [key for key in ours if key in theirs]
    for tau in dict.fromkeys(tau for tau, _ in both):
        seeds = sorted(seed for t, seed in both if t == tau)
        found = difference([(ours[tau, seed], theirs[tau, seed]) for seed in seeds])
        sys.stdout.write(f"τ = {tau}, seeds {', '.join(map(str, seeds))}: {found:+.4f}\n")


if __name__ == "__main__":
    main()
