"""The command `bora evaluate RUN --data FILE`: perplexity of new text, and its likeliest task."""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from bora.bayes.adapters import Shared
from bora.commands.common import add_device, add_table, checked, read_texts, run_parser, text_column
from bora.commands.exits import cli_errors
from bora.config import Count
from bora.lib.console import plain_console, progress, tell
from bora.runs.directory import DOCUMENTS
from bora.use.evaluate import Evaluation, evaluate, hash_texts, make_evaluation_folder, write_evaluation
from bora.use.restore import Restored, restore
from bora.use.score import MODELS

MAX_SHOWN = 5  # unknown tasks that are named


def parser() -> argparse.ArgumentParser:
    parser = run_parser("evaluate", "Perplexity of new text, and the likeliest task of each document.")
    add_table(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("evaluation"), metavar="FOLDER", help="folder to write to (evaluation)"
    )
    parser.add_argument(
        "--batch-size", type=checked(Count), default=32, metavar="N", help="rows (document × task) in a forward (32)"
    )
    parser.add_argument(
        "--prior",
        choices=("uniform", "documents"),
        default="uniform",
        help="of the tasks: uniform, or by their numbers of training documents (uniform)",
    )
    parser.add_argument(
        "--likelihoods", choices=("csv", "parquet"), help="also write log p(text | θ) of every document and task"
    )
    add_device(parser)
    return parser


def show(found: Evaluation, prior: str) -> None:
    """Print the perplexities and the accuracy."""
    console = plain_console()
    if found.per_task is not None and found.overall is not None:
        table = Table(title="perplexity", title_justify="left")
        table.add_column("task", overflow="fold")
        for column in ("docs", "tokens", "θ of the task", "Θ", "frozen backbone"):
            table.add_column(column, justify="right")
        for row in found.per_task.to_dict("records"):
            figures = (f"{row[column]:.2f}" for column in MODELS)
            table.add_row(row["task"], f"{row['n_documents']:,}", f"{row['n_tokens']:,}", *figures)
        table.add_section()
        sums = (f"{found.per_task[column].sum():,}" for column in ("n_documents", "n_tokens"))
        table.add_row("all (by token)", *sums, *(f"{found.overall[column]:.2f}" for column in MODELS))
        console.print(table)
    console.print(f"every row, its task unknown ({prior} prior): perplexity {found.mixture_perplexity:.2f}")
    if (c := found.classification) is not None:
        console.print(
            f"likeliest task, {c['n']:,} documents: accuracy {c['accuracy']:.3f} (95 %: {c['low']:.3f} to "
            f"{c['high']:.3f}), mean over tasks {c['macro_accuracy']:.3f}; by chance {c['chance']:.3f}, always "
            f"the commonest {c['majority']:.3f}; log loss {c['log_loss']:.3f} nats"
        )


def warnings_for(found: Evaluation, restored: Restored) -> Iterator[str]:
    """Yield what a reader of the numbers must know, a line each."""
    counts = found.counts
    if unknown := counts["unknown_tasks"]:
        named = ", ".join(f"{task!r} ({n:,})" for task, n in list(unknown.items())[:MAX_SHOWN])
        more = f", and {len(unknown) - MAX_SHOWN} more" if len(unknown) > MAX_SHOWN else ""
        yield (
            f"{sum(unknown.values()):,} rows are of {len(unknown)} task(s) that the run does not have: {named}{more}; "
            f"they are in {DOCUMENTS} only"
        )
    if 0 < counts["unlabelled"] < counts["rows"]:
        yield f"{counts['unlabelled']:,} rows name no task; they are in {DOCUMENTS} only"
    if counts["without_a_token_to_score"]:
        yield f"{counts['without_a_token_to_score']:,} rows have no token to score"
    if isinstance(restored.model.adapters, Shared):
        yield "at tau=inf all tasks share one model: only the prior, and names in a prompt, tell them apart"
    if restored.cfg.data.score_padding:
        yield "the run scored padding too; here it is not scored, so perplexities differ from the run's own"


def main() -> None:
    """Run the command line."""
    arguments = parser().parse_args()
    start = time.perf_counter()
    with cli_errors():
        text = text_column(arguments)
        table = read_texts(arguments.data, text, arguments.task)
        make_evaluation_folder(arguments.out)
        tell(f"{len(table):,} documents; loading {arguments.run}")
        restored = restore(arguments.run, arguments.device, arguments.dtype)
        tell(f"scoring each document under {len(restored.model.tasks):,} tasks")
        found = evaluate(restored, table, arguments.prior, arguments.batch_size, progress)
        about = {
            "run": str(arguments.run.expanduser().resolve()),
            "run_data_sha256": restored.summary["data_sha256"],
            "tau": restored.model.tau,
            "model": restored.summary["model"],
            "dtype": str(restored.model.backbone.dtype).removeprefix("torch."),
            "device": arguments.device,
            "data": str(arguments.data.expanduser().resolve()),
            "columns": {"text": text, "task": arguments.task},
            "data_sha256": hash_texts(table),
            "prior": arguments.prior,
            "seconds": round(time.perf_counter() - start, 1),
        }
        write_evaluation(found, restored.model.adapters.task_names, about, arguments.out, arguments.likelihoods)
    show(found, arguments.prior)
    for line in warnings_for(found, restored):
        print(f"bora: {line}", file=sys.stderr)
    print(f"evaluation: {arguments.out.resolve()}")


if __name__ == "__main__":
    main()
