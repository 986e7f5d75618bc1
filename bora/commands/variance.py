"""The command `bora variance RUN --by COLUMN…`: which columns go with what the documents would have of Θ."""

import argparse
from pathlib import Path

import pandas as pd
from rich.table import Table

from bora.commands.common import add_device, checked, run_parser
from bora.commands.exits import cli_errors
from bora.config import Count
from bora.data.read import read_column
from bora.lib.console import plain_console, progress, tell
from bora.lib.files import write_text_atomically
from bora.use.restore import restore, validation_documents
from bora.use.variance import Share, gradient_similarities, variance_shares

MAX_DOCUMENTS = 1000


def parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    parser = run_parser(
        "variance",
        "Rank the task and columns of the table by their share of the variance of the documents' gradients at Θ: what is "
        "worth a level of the model, and whether tasks differ at all. Reads the run's validation documents.",
    )
    add = parser.add_argument
    add("--by", nargs="+", default=[], metavar="COLUMN", help="columns of the table that the run was trained on")
    add(
        "-n",
        "--documents",
        type=checked(Count),
        default=MAX_DOCUMENTS,
        metavar="N",
        help=f"at most so many documents, drawn at random; pairs of them are compared ({MAX_DOCUMENTS})",
    )
    add("--batch-size", type=checked(Count), default=16, metavar="N", help="documents in a backward (16)")
    add("-o", "--out", type=Path, metavar="FILE", help="write the table as CSV too")
    add_device(parser)
    return parser


def main() -> None:
    """Run the command line."""
    arguments = parser().parse_args()
    with cli_errors():
        tell(f"loading {arguments.run}")
        restored = restore(arguments.run, arguments.device, arguments.dtype)
        table = validation_documents(restored.directory)
        table = table.sample(min(arguments.documents, len(table)), random_state=0).sort_index()
        columns = {name: read_column(restored.cfg.data, name, table.index, "--by=") for name in arguments.by}
        tell(f"gradients of {len(table):,} validation documents of {table['task'].nunique():,} tasks at Θ")
        similarity = gradient_similarities(restored, table, arguments.batch_size, progress)
        shares = variance_shares(similarity, table["task"].tolist(), columns)
        if arguments.out is not None:
            write_text_atomically(arguments.out, pd.DataFrame(map(vars, shares)).to_csv(index=False))
    show(shares)


def show(shares: list[Share]) -> None:
    """Print the shares, and what they mean for the tasks."""
    table = Table(title="share of the variance of documents' gradients [95 %]", title_justify="left")
    table.add_column("column", overflow="fold")
    for column in ("units", "share", "p"):
        table.add_column(column, justify="right")
    for share in shares:
        interval = f"{share.share:.1%} [{share.low:.1%}, {share.high:.1%}]".replace("-", "−")
        table.add_row(share.column, f"{share.units:,}", interval, f"{share.p_value:.2g}")
    console = plain_console()
    console.print(table)
    task = next(share for share in shares if share.column == "task")
    if task.low > 0:
        console.print("documents of a task pull the same way: a finite tau has something to find")
    else:
        console.print("no sign that documents of a task pull the same way: one model (tau=inf) may be all there is")


if __name__ == "__main__":
    main()
