"""The command `bora evaluate RUN --data FILE`: find the perplexity of new text, and its likeliest task."""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pandas as pd

from bora.bayes.forms import Shared
from bora.bayes.model import Under
from bora.commands.common import COUNT, add_device, add_table, columns_of, read_texts, run_parser
from bora.commands.exits import cli_errors
from bora.commands.tables import make_table
from bora.data.streams import OPENERS
from bora.data.table import READERS
from bora.errors import UserError
from bora.lib.console import plain_console, tell
from bora.lib.files import user_path
from bora.report.intervals import Interval
from bora.runs.directory import DOCUMENTS, EVALUATIONS, TRAINED_ON
from bora.train.authorship import PRIORS
from bora.use.answers import NAMES, compare_answers
from bora.use.ask import Ask
from bora.use.evaluate import Evaluation, evaluate
from bora.use.evaluation_files import hash_texts, make_evaluation_folder, write_evaluation
from bora.use.restore import Restored, restore
from bora.use.sampling import Sampling
from bora.use.score import MODELS

MAX_SHOWN = 5  # unknown tasks to name
BESIDE = "another run whose answers to show too, for example the one at τ = 0; may be repeated"


def parser() -> argparse.ArgumentParser:
    parser = run_parser("evaluate", "Find the perplexity of new text, and the likeliest task of each document.")
    add = parser.add_argument
    add_table(parser)
    add("--out", type=user_path, metavar="FOLDER", help="folder to write to (RUN/evaluation/NAME, NAME as --data's)")
    add("--include-trained", action="store_true", help="report also on rows that the run was trained on")
    add("--batch-size", **COUNT, default=32, help="rows (document × task) in a forward pass (32)")
    prior = "prior over tasks: uniform, or by their numbers of training documents (uniform)"
    add("--prior", choices=PRIORS, default="uniform", help=prior)
    add("--likelihoods", choices=("csv", "parquet"), help="also write log p(text | θ) of every document and task")
    add("--answers", **COUNT, nargs="?", const=0, help="answer the prompts too: N of each task, or all")
    add("--beside", type=user_path, action="append", default=[], metavar="RUN", help=BESIDE)
    add("--max-new-tokens", **COUNT, default=64, help="tokens of an answer, at most (64)")
    add_device(parser)
    return parser


def bare_name(data: Path) -> Path:
    """Return a table's name without its endings, such as .csv.gz."""
    name = Path(data.name)
    while name.suffix.lower() in (*READERS, *OPENERS):
        name = name.with_suffix("")
    return name


def show(found: Evaluation, restored: Restored, prior: str) -> None:
    """Print the perplexities, the accuracy, and how sure the posterior is."""
    console = plain_console()
    if found.per_task is not None and found.overall is not None:
        table = make_table("perplexity", ["task", "docs", "tokens", "θ of the task", "Θ", "frozen backbone"], "task")
        for row in found.per_task.to_dict("records"):
            figures = (f"{row[column]:.2f}" for column in MODELS)
            table.add_row(row["task"], f"{row['n_documents']:,}", f"{row['n_tokens']:,}", *figures)
        table.add_section()
        sums = (f"{found.per_task[column].sum():,}" for column in ("n_documents", "n_tokens"))
        table.add_row("all (by token)", *sums, *(f"{found.overall[column]:.2f}" for column in MODELS))
        console.print(table)
    if found.answers is not None and found.answer_scores is not None:
        show_answers(len(found.answers), found.answer_scores)
    console.print(f"all rows, their tasks taken as unknown ({prior} prior): perplexity {found.mixture_perplexity:.2f}")
    if (c := found.classification) is not None:
        console.print(
            f"likeliest task, {c['n']:,} documents: accuracy {c['accuracy']:.3f} (95 %: {c['low']:.3f} to "
            f"{c['high']:.3f}), mean over tasks {c['macro_accuracy']:.3f}; by chance {c['chance']:.3f}, always "
            f"the commonest {c['majority']:.3f}"
        )
        for level, units in found.levels.items():
            console.print(
                f"likeliest {level}: accuracy {units['accuracy']:.3f} (95 %: {units['low']:.3f} to {units['high']:.3f}); "
                f"by chance {units['chance']:.3f}, always the commonest {units['majority']:.3f}"
            )
        at_1, with_t = (
            f"log loss {c[f'log_loss{s}']:.3f} nats, calibration error {c[f'calibration_error{s}']:.3f}"
            for s in ("_at_1", "")
        )
        fitted, note = restored.summary.get("temperature") is not None, restored.summary["temperature_note"]
        tempered = (
            f"; with temperature {found.temperature:.3g} ({note}): {with_t}" if fitted else f" (temperature {note})"
        )
        console.print(f"how sure: {at_1}{tempered}; guessing: log loss {c['guessing_log_loss']:.3f}")


def show_answers(n: int, scores: pd.DataFrame) -> None:
    """Print the scores of answers, means over tasks with their intervals, and paired differences."""
    means = compare_answers(scores)
    names = means["score"].unique()
    table = make_table(f"answers to {n:,} prompts, mean over tasks [95 %]", ["", *(NAMES[name] for name in names)], "")
    for (under, minus), rows in means.groupby(["under", "minus"], sort=False):
        who = " − ".join(NAMES.get(str(name), str(name)) for name in (under, minus) if name)
        cells = rows.set_index("score").loc[names, ["value", "low", "high"]].itertuples(index=False)
        table.add_row(who, *(format(Interval(*cell), "+.3f" if minus else ".3f") for cell in cells))
    plain_console().print(table)


def warnings_for(found: Evaluation, restored: Restored, included: bool) -> Iterator[str]:
    """Yield what readers of the numbers must know, a line each."""
    counts = found.counts
    if unknown := counts["unknown_tasks"]:
        named = ", ".join(f"{task!r} ({n:,})" for task, n in list(unknown.items())[:MAX_SHOWN])
        more = f", and {len(unknown) - MAX_SHOWN} more" if len(unknown) > MAX_SHOWN else ""
        yield (
            f"{sum(unknown.values()):,} rows are of {len(unknown)} task(s) that the run does not have: {named}{more}; "
            f"they are in {DOCUMENTS} only"
        )
    if counts["unlabelled"] == counts["rows"]:
        yield "no row names a task, so there is only the posterior; name the column of tasks with --task"
    elif counts["unlabelled"]:
        yield f"{counts['unlabelled']:,} rows name no task; they are in {DOCUMENTS} only"
    if counts["without_a_token_to_score"]:
        yield f"{counts['without_a_token_to_score']:,} rows have no token to score"
    if counts["trained_on"] is None:
        yield f"a run has no {TRAINED_ON}, so its training data may be among these rows"
    elif counts["trained_on"]:
        reported = "included in the figures" if included else f"left out of the figures; {DOCUMENTS} lists them"
        yield f"the run was trained on the text of {counts['trained_on']:,} rows of {counts['rows']:,}: {reported}"
    if isinstance(restored.model.adapters, Shared):
        yield "at tau=inf all tasks share one model: only the prior, and names in a prompt, tell them apart"
    if restored.cfg.data.score_padding:
        yield "the run scored padding too; here it is not scored, so perplexities differ from the run's own"


def main() -> None:
    arguments = parser().parse_args()
    start = time.perf_counter()
    with cli_errors():
        if arguments.beside and arguments.answers is None:
            raise UserError("--beside shows another run's answers: give --answers too")
        beside = {path.resolve().name: path for path in arguments.beside}
        if len(beside.keys() - {*get_args(Under)}) < len(arguments.beside):
            raise UserError("--beside: the runs' folders must have different names, other than task, mean and base")
        table = read_texts(arguments.data, columns_of(arguments))
        run, data_sha256 = arguments.run.resolve(), hash_texts(table)
        out = arguments.out or run / EVALUATIONS / bare_name(arguments.data)
        make_evaluation_folder(out, run, data_sha256)
        tell(f"{len(table):,} documents; loading {arguments.run}")
        restored = restore(arguments.run, arguments.device, arguments.dtype)
        tell(f"scoring each document under {len(restored.model.tasks):,} tasks")
        ask = None
        if arguments.answers is not None:
            others = {name: restore(run, arguments.device, arguments.dtype) for name, run in beside.items()}
            sampling = {name: getattr(arguments, name) for name in ("max_new_tokens", "batch_size")}
            ask = Ask(Sampling(**sampling), arguments.answers or None, others)
        found = evaluate(restored, table, arguments.prior, arguments.batch_size, arguments.include_trained, ask)
        about = {
            "run": str(run),
            "run_data_sha256": restored.summary["data_sha256"],
            "tau": restored.model.tau,
            "model": restored.summary["model"],
            "dtype": str(restored.model.backbone.dtype).removeprefix("torch."),
            "device": arguments.device,
            "data": str(arguments.data.resolve()),
            "columns": {"text": arguments.text, "task": arguments.task},  # null: the default
            "data_sha256": data_sha256,
            "prior": arguments.prior,
            "include_trained": arguments.include_trained,
            "answers_per_task": arguments.answers,
            "beside": [str(run.resolve()) for run in arguments.beside],
            "max_new_tokens": arguments.max_new_tokens,
            "temperature_note": restored.summary["temperature_note"],
            "seconds": round(time.perf_counter() - start, 1),
        }
        write_evaluation(found, restored.model.adapters.task_names, about, out, arguments.likelihoods)
        show(found, restored, arguments.prior)
        for line in warnings_for(found, restored, arguments.include_trained):
            print(f"bora: {line}", file=sys.stderr)
        print(f"evaluation: {out.resolve()}")
