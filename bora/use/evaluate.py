"""The command `bora evaluate RUN --data FILE`: perplexity of new text, and which task it is likeliest to be of.

Rows whose task the run knows are scored under it, under Θ and under the frozen backbone. And of every row,
labelled or not, the posterior over tasks is computed, p(d | text) ∝ p(d) · p(text | θ_d).
"""

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bora.bayes.adapters import Shared
from bora.commands.exits import cli_errors
from bora.config import MAX_COUNT
from bora.errors import UserError
from bora.lib.console import plain_console
from bora.lib.files import make_output_folder, write_text_atomically
from bora.runs.directory import CONFIG, DOCUMENTS, METRICS, PER_TASK, SUMMARY, versions, write_json
from bora.use.common import restore_on, run_parser
from bora.use.restore import Restored
from bora.use.score import MODELS, Likelihoods, Progress, accuracy, likelihoods, log_prior, perplexities
from bora.use.texts import check_exists, read_texts, sha256

PRIORS = ("uniform", "documents")
SHOWN = 5  # unknown tasks that are named


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        documents: a row a document: row, task (as labelled), best, posterior (of best), task_posterior (of its
            own task, where the run has it), n_scored; best and posterior are empty without a token to score.
        per_task, overall: see `perplexities`; None where no row has a task of the run.
        likelihoods: log p(text | θ_d).
        counts: of rows: read, of the run's tasks, unlabelled, without a token to score; and unknown_tasks,
            task → rows.
        classification: see `accuracy`, with log_loss, the mean of −log p(true task | text) in nats; None
            where no row that can be scored has a task of the run.
        mixture_perplexity: of all rows under Σ_d p(d) p(text | θ_d), a mixture that knows no document's task.
    """

    documents: pd.DataFrame
    per_task: pd.DataFrame | None
    overall: dict[str, float] | None
    likelihoods: Likelihoods
    counts: dict[str, Any]
    classification: dict[str, float] | None
    mixture_perplexity: float


def evaluate(
    restored: Restored, table: pd.DataFrame, prior: str = "uniform", batch_size: int = 32, bars: bool = False
) -> Evaluation:
    """Score new text under a run's models.

    Args:
        restored: a finished run.
        table: columns task (an empty string where it is not known) and text; its index is kept as `row`.
        prior: over tasks: uniform | documents, by the tasks' numbers of training documents.
        batch_size: rows in a forward.
        bars: show progress on standard error.

    Raises:
        UserError: there are labels and none is a task of the run, or no row has a token to score.
    """
    names = restored.model.adapters.task_names
    known, labelled = table["task"].isin(names).to_numpy(), (table["task"] != "").to_numpy()
    unknown = table["task"][labelled & ~known].value_counts()
    if labelled.any() and not known.any():
        raise UserError(
            f"no row is of a task that the run has: there is {unknown.index[0][:40]!r}, the run has {names[0]!r} "
            "and so on; name the column of tasks with --task"
        )

    def bar(what: str) -> Progress:
        def shown(steps: Iterable[int], n: int) -> Iterable[int]:
            console = Console(stderr=True)
            return track(steps, what, n, console=console, transient=True, disable=not (bars and console.is_terminal))

        return shown

    scores = likelihoods(restored, table["text"].tolist(), batch_size, bar("tasks × documents"))
    scorable = scores.n_scored > 0
    if not scorable.any():
        raise UserError("no row has a text with a token to score; name the column of texts with --text")
    per_task = overall = None
    if (known & scorable).any():
        per_task, overall = perplexities(restored, table[known], batch_size, bar("perplexity"))
    log_posterior, evidence = scores.posterior(log_prior(restored.model, prior))
    best = np.array(names, dtype=object)[log_posterior.argmax(axis=1)]
    index = {name: i for i, name in enumerate(names)}
    own = np.array([index.get(task, -1) for task in table["task"]])
    own_log = np.where(known & scorable, log_posterior[np.arange(len(own)), own], np.nan)
    documents = pd.DataFrame(
        {
            "row": table.index,
            "task": table["task"].to_numpy(),
            "best": np.where(scorable, best, ""),
            "posterior": np.where(scorable, np.exp(log_posterior.max(axis=1)), np.nan),
            "task_posterior": np.exp(own_log),
            "n_scored": scores.n_scored,
        }
    )
    classification = None
    if (known & scorable).any():
        judged = documents[known & scorable]
        classification = accuracy(judged["best"], judged["task"], len(names))
        classification["log_loss"] = float(-own_log[known & scorable].mean())
    counts = {
        "rows": len(table),
        "of_the_runs_tasks": int(known.sum()),
        "unlabelled": int((~labelled).sum()),
        "without_a_token_to_score": int((~scorable).sum()),
        "unknown_tasks": {str(task): int(n) for task, n in unknown.items()},
    }
    mixture = float(np.exp(-evidence[scorable].sum() / scores.n_scored.sum()))
    return Evaluation(documents, per_task, overall, scores, counts, classification, mixture)


def make_folder(out: Path) -> None:
    """Make the folder for the files.

    Raises:
        UserError: no files can be written there, or a run's are there, of the same names.
    """
    if any((out / name).exists() for name in (CONFIG, METRICS, "checkpoints")):
        raise UserError(f"--out {out}: a run is in that folder; give another one")
    make_output_folder(out)


def write(found: Evaluation, names: list[str], about: dict[str, Any], out: Path, form: str | None) -> None:
    """The evaluation's files, in the place of an earlier one's, once all are written.

    Args:
        names: the run's tasks.
        about: what was evaluated: the summary's first part.
        out: from make_folder.
        form: of likelihoods.FORM, csv or parquet; None for no such file.
    """
    with tempfile.TemporaryDirectory(prefix=".bora.", dir=out) as new:
        _write(found, names, about, Path(new), form)
        # The summary is away while the others change.
        (out / SUMMARY).unlink(missing_ok=True)
        for name in (DOCUMENTS, PER_TASK, "likelihoods.csv", "likelihoods.parquet", SUMMARY):
            if (Path(new) / name).exists():
                (Path(new) / name).replace(out / name)
            else:
                (out / name).unlink(missing_ok=True)


def _write(found: Evaluation, names: list[str], about: dict[str, Any], out: Path, form: str | None) -> None:
    write_text_atomically(out / DOCUMENTS, found.documents.to_csv(index=False))
    if found.per_task is not None:
        write_text_atomically(out / PER_TASK, found.per_task.to_csv(index=False))
    if form is not None:
        n = len(found.documents)
        long = pd.DataFrame(
            {
                "row": found.documents["row"].repeat(len(names)).to_numpy(),
                "task": pd.Categorical.from_codes(np.tile(range(len(names)), n), pd.Index(names)),
                "log_likelihood": found.likelihoods.nats.ravel(),
            }
        )
        if form == "csv":
            write_text_atomically(out / "likelihoods.csv", long.to_csv(index=False))
        else:
            long.to_parquet(out / "likelihoods.parquet", index=False)
    results = {
        "documents": found.counts,
        "perplexity": found.overall,
        "mixture_perplexity": found.mixture_perplexity,
        "classification": found.classification,
    }
    write_json(out / SUMMARY, about | results | {"versions": versions()})


def tell(found: Evaluation, restored: Restored, prior: str) -> None:
    """Print what was found, and what was left out of it."""
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
    console.print(f"every row, its task not told ({prior} prior): perplexity {found.mixture_perplexity:.2f}")
    c = found.classification
    if c is not None:
        console.print(
            f"likeliest task, {c['n']:,} documents: accuracy {c['accuracy']:.3f} (95 %: {c['low']:.3f} to "
            f"{c['high']:.3f}), mean over tasks {c['macro_accuracy']:.3f}; by chance {c['chance']:.3f}, always "
            f"the commonest {c['majority']:.3f}; log loss {c['log_loss']:.3f} nats"
        )
    for line in notes(found, restored):
        print(f"bora: {line}", file=sys.stderr)


def notes(found: Evaluation, restored: Restored) -> Iterator[str]:
    """What a reader of the numbers must know, a line each."""
    counts = found.counts
    unknown = counts["unknown_tasks"]
    if unknown:
        named = ", ".join(f"{task!r} ({n:,})" for task, n in list(unknown.items())[:SHOWN])
        more = f", and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        yield (
            f"{sum(unknown.values()):,} rows are of {len(unknown)} task(s) that the run does not have: {named}{more}; "
            f"they are in {DOCUMENTS}, not in the tables or the accuracy"
        )
    if counts["unlabelled"] and counts["unlabelled"] < counts["rows"]:
        yield f"{counts['unlabelled']:,} rows name no task; they are in {DOCUMENTS} only"
    if counts["without_a_token_to_score"]:
        yield f"{counts['without_a_token_to_score']:,} rows have no token to score; nothing is said of them"
    if isinstance(restored.model.adapters, Shared):
        yield "at tau=inf all tasks share one model: what tells them apart is the prior, and their names in a prompt"
    if restored.cfg.data.score_padding:
        yield "the run scored padding too; here it is not, so perplexities are not those of the run's own tables"


def main() -> None:
    """Run the command line."""
    parser = run_parser("evaluate", "Perplexity of new text, and the likeliest task of each document.")
    for flag, kind, default, name, meaning in (
        ("data", Path, None, "FILE", "a table: CSV, TSV, JSON lines or Parquet, the first three also compressed"),
        ("text", str, None, "COLUMN", "column with the document (the run's data.text, else text)"),
        ("task", str, None, "COLUMN", "column with the task (task or rep_name, where there is one)"),
        ("out", Path, Path("evaluation"), "FOLDER", "folder to write to (evaluation)"),
        ("batch-size", int, 32, "N", "rows (document × task) in a forward: speed only (32)"),
    ):
        needed = flag == "data"
        parser.add_argument(f"--{flag}", type=kind, default=default, metavar=name, help=meaning, required=needed)
    parser.add_argument(
        "--prior",
        choices=PRIORS,
        default="uniform",
        help="of the tasks: uniform, or by their numbers of training documents (uniform)",
    )
    parser.add_argument(
        "--likelihoods", choices=("csv", "parquet"), help="write log p(text | θ) of every document and task, too"
    )
    arguments = parser.parse_args()
    start = time.perf_counter()
    with cli_errors():
        if not 1 <= arguments.batch_size <= MAX_COUNT:
            raise UserError(f"--batch-size {arguments.batch_size}: must be a whole number from 1 to {MAX_COUNT}")
        check_exists(arguments.data)
        restored = restore_on(arguments.run, arguments.device, arguments.dtype)
        column = arguments.text or getattr(restored.cfg.data, "text", "text")
        table = read_texts(arguments.data, column, arguments.task)
        make_folder(arguments.out)
        found = evaluate(restored, table, arguments.prior, arguments.batch_size, bars=True)
        about = {
            "run": str(arguments.run.expanduser().resolve()),
            "run_data_sha256": restored.summary["data_sha256"],
            "tau": restored.model.tau,
            "model": restored.summary["model"],
            "dtype": str(restored.model.backbone.dtype).removeprefix("torch."),
            "device": arguments.device,
            "data": str(arguments.data.expanduser().resolve()),
            "columns": {"text": column, "task": arguments.task},
            "data_sha256": sha256(table),
            "prior": arguments.prior,
            "seconds": round(time.perf_counter() - start, 1),
        }
        write(found, restored.model.adapters.task_names, about, arguments.out, arguments.likelihoods)
    tell(found, restored, arguments.prior)
    print(f"evaluation: {arguments.out.resolve()}")


if __name__ == "__main__":
    main()
