"""Log the report as a run in Weights & Biases, with interactive panels of the sweep."""

import logging
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import wandb
from wandb.plot import CustomChart

from bora.errors import first_line
from bora.report.evidence import Evidence, place_taus
from bora.report.page import Section
from bora.runs.archive import RunRecord
from bora.runs.trackers.wandb import forget_wandb_run, wandb_mode

MAX_LINES = 100  # tasks in a chart

log = logging.getLogger(__name__)


def log_view(sections: list[Section], runs: list[RunRecord], output: Path) -> None:
    """Log the panels, tables, figures and page of a report, written to `output`, if the first run was logged to W&B."""
    config = runs[0].config
    mode = wandb_mode(config["logger.mode"]) if config.get("logger.kind") == "wandb" else "disabled"
    if mode == "disabled":
        return
    forget_wandb_run()
    try:
        view = wandb.init(
            project=config["logger.project"],
            entity=config["logger.entity"],
            group=config["name"],
            name="report",
            job_type="report",
            dir=output,
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )
    except wandb.errors.Error as error:
        log.warning("the report could not be logged to W&B (%s); it is in %s", first_line(error), output)
        return
    with view:
        for section in sections:
            shown = panels(section.evidence) | pictures(section)
            prefix = f"{section.slug}/" if len(sections) > 1 else ""
            view.log({f"{prefix}{name}": panel for name, panel in shown.items()})
        view.log({"page": wandb.Html((output / "index.html").read_text("utf-8"), inject=False)})


def panels(evidence: Evidence) -> dict[str, wandb.Table | CustomChart]:
    """Build the panels: perplexity by τ, perplexity and distance from Θ by τ and task, and a table of the numbers."""
    taus = evidence.series.taus
    overall = {
        words: [evidence.perplexities(tau, split).mean() for tau in taus]
        for words, split in (("validation", "val"), (evidence.measure, "test"))
    }
    by_task, distances = evidence.task_means().head(MAX_LINES), evidence.task_means("distance").head(MAX_LINES)
    return {
        "perplexity by tau": chart(taus, overall.items(), "perplexity, all tasks by token"),
        "perplexity by tau and task": chart(taus, by_task.T.items(), f"{evidence.measure} of each task"),
        "distance by tau and task": chart(taus, distances.T.items(), "‖θ_d − Θ‖ of each task"),
        "tasks by run": wandb.Table(dataframe=long_table(evidence)),
    }


def chart(taus: list[float], lines: Iterable[tuple[object, Iterable[float]]], title: str) -> CustomChart:
    """Draw lines over log₁₀ τ, with the limits τ = 0 and ∞ one decade outside the finite values."""
    names, values = zip(*((str(name), list(line)) for name, line in lines), strict=True)
    xname = "log10 tau (0 and inf at the sides)"
    return wandb.plot.line_series(place_taus(taus), values, keys=names, title=title, xname=xname)


def long_table(evidence: Evidence) -> pd.DataFrame:
    """Build a table with a row for each run and task."""
    rows = [run.per_task.reset_index().assign(tau=str(run.tau), seed=run.seed) for run in evidence.series.runs]
    return pd.concat(rows)[["tau", "seed", "task", "n_train", "val_perplexity", "test_perplexity", "distance"]]


def pictures(section: Section) -> dict[str, wandb.Table | wandb.Image]:
    """Collect a section's tables and figures."""
    tables = {t.name: wandb.Table(dataframe=t.cells.astype(str)) for t in (section.table1, section.table2)}
    folder = section.folder
    return tables | {p.name: wandb.Image(str(folder / f"{p.name}.png"), caption=p.caption) for p in section.pictures}
