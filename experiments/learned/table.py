"""Print tau=learn against the grids: paired nats a token on test, mean over seeds, 95 % bootstrap over tasks."""

import sys
from pathlib import Path

import pandas as pd

from bora.lib.names import format_tau
from bora.runs.archive import RunRecord, read_archive
from experiments.compare import difference

HERE = Path(__file__).parent
# Corpus → the archive of its grid, and the grid's name there; None: beside the learned runs.
GRIDS = {
    "stdlib": ("stdlib", "stdlib-noncentered"),
    "bodies": ("answers", "stdlib-bodies"),
    "folketing": ("folketing", "folketing-bfloat16"),
}


def compare(corpus: str, learned: list[RunRecord], grid: list[RunRecord]) -> list[dict]:
    """A row a τ of the grid: means over the seeds that both have; in bold the τ that validation chooses."""
    mine, rows, validation = {run.seed: run for run in learned}, [], []
    for tau in sorted({run.tau for run in grid}):
        theirs = {run.seed: run for run in grid if run.tau == tau and run.seed in mine}
        if not theirs:
            continue

        def mean(runs: dict[int, RunRecord], figure: str, seeds=theirs) -> float:
            return sum(runs[s].summary[figure] for s in seeds) / len(seeds)

        validation.append(mean(theirs, "val_perplexity"))
        rows.append(
            {
                "corpus": corpus,
                "τ": format_tau(tau),
                "seeds": str(len(theirs)),
                "validation": f"{mean(theirs, 'val_perplexity'):.2f}",
                "test": f"{mean(theirs, 'test_perplexity'):.2f}",
                "learned, test": f"{mean(mine, 'test_perplexity'):.2f}",
                "learned − τ, nats a token": f"{difference([(mine[s], theirs[s]) for s in sorted(theirs)]):+.4f}",
                "epochs, learned and τ": f"{mean(mine, 'epochs'):.1f}, {mean(theirs, 'epochs'):.1f}",
            }
        )
    if rows:
        best = rows[validation.index(min(validation))]
        best |= {name: f"**{cell}**" for name, cell in best.items() if name != "corpus"}
    return rows


def main() -> None:
    """Print a table for each corpus."""
    learned = list(read_archive(HERE / "runs.csv.gz"))
    rows = []
    for corpus, (folder, name) in GRIDS.items():
        grid = [run for run in read_archive(HERE.parent / folder / "runs.csv.gz") if run.config["name"] == name]
        rows += compare(corpus, [run for run in learned if run.config["name"] == f"{corpus}-learned"], grid)
    for size in sorted({str(run.folder.parent.name) for run in learned if run.config["name"] == "sizes"}):
        of_size = [run for run in learned if run.folder.parent.name == size]
        given = [run for run in of_size if run.learned is None]
        rows += compare(size, [run for run in of_size if run.learned is not None], given)
    sys.stdout.write(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True) + "\n")


if __name__ == "__main__":
    main()
