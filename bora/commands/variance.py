"""The command `bora variance RUN --by COLUMN… --tau`: find how much tasks and columns differ, and τ for inference."""

import argparse
from functools import partial

import pandas as pd

from bora.commands.common import COUNT, add_device, run_parser
from bora.commands.exits import cli_errors
from bora.commands.tables import make_table
from bora.data.read import read_column
from bora.lib.console import plain_console, tell
from bora.lib.files import make_output_folder, user_path
from bora.runs.corpus import split_documents
from bora.runs.directory import EVIDENCE, INFERRED, SHARES, VARIANCE
from bora.runs.values import write_csv
from bora.use.curvature import MAX_TASKS, find_tau
from bora.use.restore import restore
from bora.use.variance import MAX_DOCUMENTS, find_shares


def parser() -> argparse.ArgumentParser:
    parser = run_parser(
        "variance",
        "Rank the task and columns of the table by their share of the variance of the documents' gradients at Θ: which "
        "are worth a level of the model, and whether tasks differ at all. Reads the run's validation documents. --tau "
        "also infers τ from the trained deviations, which is not the best τ for perplexity.",
    )
    add = parser.add_argument
    add("--by", nargs="+", default=[], metavar="COLUMN", help="columns of the table that the run was trained on")
    most = f"draw at most N documents at random; pairs of them are compared ({MAX_DOCUMENTS})"
    add("-n", "--documents", **COUNT, default=MAX_DOCUMENTS, help=most)
    add("--batch-size", **COUNT, default=16, help="documents in a backward pass (16)")
    evidence = (
        f"also infer τ by the evidence, from all training documents of {MAX_TASKS} tasks at most: takes an epoch's time"
    )
    add("--tau", action="store_true", help=evidence)
    out = "folder for the tables as CSV (RUN/variance, where bora report looks)"
    add("-o", "--out", type=user_path, metavar="FOLDER", help=out)
    add_device(parser)
    return parser


def main() -> None:
    arguments = parser().parse_args()
    with cli_errors():
        tell(f"loading {arguments.run}")
        restored = restore(arguments.run, arguments.device, arguments.dtype)
        table = split_documents(restored.directory, "validation")
        out = arguments.out or restored.directory.path / VARIANCE
        make_output_folder(out)
        read = partial(read_column, restored.cfg.data, argument="--by=")
        shares = find_shares(restored, table, read, arguments.by, arguments.documents, arguments.batch_size)
        write_csv(out / SHARES, shares)
        show(shares)
        if arguments.tau:
            table = split_documents(restored.directory, "train")
            found, profile = find_tau(restored, table, arguments.batch_size)
            write_csv(out / INFERRED, found)
            write_csv(out / EVIDENCE, profile)
            show_tau(found)


def show_tau(found: pd.DataFrame) -> None:
    """Print τ for inference by group of parameters."""
    columns = ["factors", "τ, curvature by its diagonal", "by its eigenvalues"]
    table = make_table("τ for inference, by the evidence [95 %, over tasks]", columns, "factors")
    for _, row in found.iterrows():
        cells = (
            f"{row[key]:,.3g} [{row[f'{key}_low']:,.3g}, {row[f'{key}_high']:,.3g}]".replace("inf", "∞")
            for key in ("tau", "lower_tau")
        )
        table.add_row(row["group"], *cells)
    console = plain_console()
    console.print(table)
    console.print(
        "the diagonal counts too many parameters as determined by the data, the eigenvalues too few: τ lies between. It "
        "is inferred from the deviations, and is not the best τ for perplexity (tau=learn, or a grid)"
    )


def show(shares: pd.DataFrame) -> None:
    """Print the shares, and what they mean for the tasks."""
    columns = ["column", "units", "share", "p"]
    table = make_table("share of the variance of documents' gradients [95 %]", columns, "column")
    for row in shares.to_dict("records"):
        interval = f"{row['share']:.1%} [{row['low']:.1%}, {row['high']:.1%}]".replace("-", "−")
        table.add_row(row["column"], f"{row['units']:,}", interval, f"{row['p_value']:.2g}")
    console = plain_console()
    console.print(table)
    (low,) = shares.loc[shares["column"] == "task", "low"]
    if low > 0:
        console.print("documents of a task have similar gradients: a finite tau should help")
    else:
        console.print("no sign that documents of a task have similar gradients: one model (tau=inf) may do as well")
