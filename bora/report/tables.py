"""Tables 1 and 2 and the claims, as CSV, Markdown, LaTeX and HTML."""

import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bora.lib import names
from bora.lib.names import format_tau
from bora.report import paper
from bora.report.claims import Claim
from bora.report.evidence import Evidence
from bora.report.intervals import LEVEL, Interval

TEXT_COLUMNS = ("task", "level", "claim", "verdict", "numbers", "who answers", "tokens", "says")  # aligned left
MAX_PAGE_ROWS = 40  # of a LaTeX table that does not break across pages


@dataclass(frozen=True)
class ReportTable:
    """A table, for programs and for people.

    Attributes:
        data: plain numbers, for CSV.
        cells: the same as text, for people.
        bold: which cells are bold.
        caption: one sentence or two.
    """

    name: str
    data: pd.DataFrame
    cells: pd.DataFrame
    bold: pd.DataFrame
    caption: str

    def _render(self, escape: Callable[[str], str], bold: Callable[[str], str]) -> pd.DataFrame:
        cells = self.cells.map(escape)
        return cells.mask(self.bold & (cells != ""), cells.map(bold)).rename(columns=escape)

    def markdown(self) -> str:
        """Write a pipe table with the caption below."""
        table = self._render(names.markdown, "**{}**".format)
        align = ["left" if column in TEXT_COLUMNS else "right" for column in self.cells]
        return table.to_markdown(index=False, colalign=align, disable_numparse=True) + f"\n\n{self.caption}\n"

    def latex(self) -> str:
        """Write a booktabs tabular in a table environment."""
        return self._render(names.latex, r"\textbf{{{}}}".format).to_latex(
            index=False,
            escape=False,
            caption=names.latex(self.caption),
            label=f"tab:{self.name}",
            column_format="".join("l" if column in TEXT_COLUMNS else "r" for column in self.cells),
            longtable=len(self.cells) > MAX_PAGE_ROWS,
        )

    def html(self) -> str:
        """Write a table element; the page has the caption."""
        table = self._render(lambda cell: html.escape(names.one_line(cell)), "<strong>{}</strong>".format)
        return table.to_html(index=False, escape=False, border=0)

    def write(self, folder: Path) -> None:
        """Write NAME.csv, NAME.md and NAME.tex."""
        self.data.to_csv(folder / f"{self.name}.csv", index=False)
        (folder / f"{self.name}.md").write_text(self.markdown(), "utf-8")
        (folder / f"{self.name}.tex").write_text(self.latex(), "utf-8")


def is_talk_of_norway(evidence: Evidence) -> bool:
    """Return whether the paper's numbers can be compared with these."""
    return evidence.series.runs[0].summary["data"] == "talk_of_norway"


def number(value: float, spec: str = ".2f") -> str:
    """Format a number; nan becomes an empty string."""
    return "" if math.isnan(value) else format(value, spec)


def table1(evidence: Evidence) -> ReportTable:
    """Build Table 1: learning rate, τ, perplexity; the τ that validation chooses in bold."""
    series, best = evidence.series, evidence.best_tau
    above_best, rows = [], []
    for tau in series.taus:
        rates = sorted({run.summary["lr"] for run in series.at(tau)})
        test, difference = evidence.over_seeds(tau), evidence.difference(tau, best)
        above = Interval(math.nan) if difference is None else difference.overall
        above_best.append("" if difference is None else f"{above:+.4f}")
        rows.append(
            {
                "learning_rate": " to ".join(f"{rate:g}" for rate in dict.fromkeys((rates[0], rates[-1]))),
                "tau": tau,
                "perplexity": test.value,
                "perplexity_low": test.low,
                "perplexity_high": test.high,
                "val_perplexity": evidence.over_seeds(tau, "val").value,
                "seeds": len(series.at(tau)),
                "nll_minus_best": above.value,
                "nll_minus_best_low": above.low,
                "nll_minus_best_high": above.high,
            }
        )
    data = pd.DataFrame(rows)
    cells = pd.DataFrame({"learning rate": data["learning_rate"], "τ": data["tau"].map(format_tau)})
    cells["validation perplexity"] = data["val_perplexity"].map(number)
    caption = f"{evidence.measure.capitalize()} over all tasks by τ. Bold: the τ that validation chooses, "
    caption += f"{format_tau(best)}; the test documents are not used to choose it."
    if series.only_learned:
        caption = f"{evidence.measure.capitalize()} over all tasks; τ was learned, this is the median over seeds"
        caption += " where it is finite." if any(math.isinf(run.tau) for run in series.learned) else "."
    if not evidence.by_batch:
        cells["test perplexity"] = data["perplexity"].map(number)
    if len(series.seeds) > 1:
        cells["± (95 %, seeds)"] = ((data["perplexity_high"] - data["perplexity_low"]) / 2).map(number)
        cells["seeds"] = data["seeds"].map(str)
        caption += " Perplexities are means over seeds, ± half a 95 % t interval over seeds."
        if len({tuple(run.seed for run in series.at(tau)) for tau in series.taus}) > 1:
            caption += " Not every τ has the same seeds, so means differ by their seeds, too."
    if len(series.taus) > 1:
        cells["nats a token above the best τ [95 %, tasks]"] = above_best
        caption += " The last column is the paired difference of the NLL; in brackets, from six tasks on, "
        caption += "a 95 % bootstrap interval over tasks."
    bold = pd.DataFrame(dict.fromkeys(cells, data["tau"] == best))
    if is_talk_of_norway(evidence):
        data["paper_perplexity"] = data["tau"].map(paper.table1().set_index("tau")["perplexity"])
        cells["paper"] = data["paper_perplexity"].map(number)
        bold["paper"] = data["paper_perplexity"] == data["paper_perplexity"].min()
        caption += " In the paper's column the best is bold."
    return ReportTable("table1", data, cells, bold, caption)


def learned_table(evidence: Evidence) -> ReportTable | None:
    """Build the table of what tau=learn found, a row for each seed; None if no run learned τ."""
    runs = evidence.series.learned
    if not runs:
        return None
    rows = []
    for run in runs:
        learned = run.learned or {}
        figures = {f"{split}_perplexity": run.summary[f"{split}_perplexity"] for split in ("val", "test")}
        for level, found in ({"tasks": learned} | learned.get("levels", {})).items():
            tau, c = (Interval(*map(float, (found[name], *found.get(f"{name}_interval", ())))) for name in ("tau", "c"))
            of_run = {"seed": run.seed, "level": level, "tau": tau.value, "tau_low": tau.low, "tau_high": tau.high}
            of_run |= {"c": c.value, "c_low": c.low, "c_high": c.high, "c_spread": found["c_spread"]}
            rows.append(of_run | figures | {"τ": f"{tau:.3g}".replace("inf", "∞"), "shown": f"{c:.2f}"})
    data = pd.DataFrame(rows)
    cells = pd.DataFrame({"seed": data["seed"].map(str), "level": data["level"]})
    cells["τ [95 %, tasks]"], cells["c [95 %, tasks]"] = data.pop("τ"), data.pop("shown")
    if (data["level"] == "tasks").all():
        cells = cells.drop(columns="level")
    cells["sd of the tasks' c"] = data["c_spread"].map(number)
    cells["validation perplexity"] = data["val_perplexity"].map(number)
    cells["test perplexity"] = data["test_perplexity"].map(number)
    caption = (
        "tau=learn: the tasks' deviations from Θ, trained nearly without a prior, are multiplied by c, which is chosen "
        "on validation documents; τ is the precision that corresponds to c."
        + " A level's interval is over its units."
        * ("level" in cells)
    )
    difference = evidence.learned_difference()
    if difference is not None:
        data["nll_minus_best_given"] = difference.overall.value
        caption += (
            f" Compared with τ = {format_tau(difference.other)}, which validation chooses among those given: "
            f"{difference.overall:+.4f} nats a token of the test documents, paired over tasks and seeds; in brackets, "
            "from six tasks on, a 95 % bootstrap interval over tasks."
        )
    return ReportTable("learned", data, cells, cells == "", caption)


def table2(evidence: Evidence) -> ReportTable:
    """Build Table 2: perplexity, task × τ; the best of each row in bold."""
    taus = evidence.series.taus
    overall = pd.DataFrame({tau: [evidence.over_seeds(tau).value] for tau in taus}, index=["all"])
    ours = pd.concat([evidence.task_means().sort_index(), overall])
    names_there = [task.lower().replace(".", "").strip() for task in ours.index]  # as in the paper's Table 2
    theirs = paper.table2().reindex(names_there).set_axis(ours.index)
    theirs = theirs.dropna(axis=1, how="all") if is_talk_of_norway(evidence) else theirs.iloc[:, :0]
    table = pd.concat([ours, theirs], axis=1)
    paper_taus = [tau for tau in paper.TAUS if tau in theirs]
    plain = [*(f"tau={tau:g}" for tau in taus), *(f"paper_tau={tau:g}" for tau in paper_taus)]
    shown = [*(f"τ = {format_tau(tau)}" for tau in taus), *(f"paper, τ = {format_tau(tau)}" for tau in paper_taus)]
    data = table.set_axis(plain, axis=1).iloc[:-1].rename_axis("task").reset_index()
    cells = table.map(number).set_axis(shown, axis=1).rename_axis("task").reset_index()
    bold = pd.DataFrame(np.hstack([_lowest(ours), _lowest(theirs)]), columns=shown)
    bold.insert(0, "task", False)
    caption = f"{evidence.measure.capitalize()} of each task by τ; the best of each row in bold."
    seeds = [len(evidence.series.at(tau)) for tau in taus]
    if max(seeds) > 1:
        of_each = f"{seeds[0]} seeds" if min(seeds) == max(seeds) else f"each τ's seeds, {min(seeds)} to {max(seeds)}"
        caption += f" Means over {of_each}."
    return ReportTable("table2", data, cells, bold, caption)


def _lowest(table: pd.DataFrame) -> np.ndarray:
    """Mark the lowest number of each row."""
    return table.to_numpy() == table.min(axis=1).to_numpy()[:, None]


def claims_table(claims: list[Claim]) -> ReportTable:
    """Build the table of the paper's claims with their verdicts; no cell is bold."""
    cells = pd.DataFrame([vars(claim) for claim in claims], columns=["claim", "numbers", "verdict"])
    caption = f"The paper's claims, judged on these runs; intervals in brackets are {LEVEL:.0%}, over tasks."
    return ReportTable("claims", cells, cells, cells.isna(), caption)
