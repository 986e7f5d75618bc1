"""Tables 1 and 2 as data, Markdown and LaTeX."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from bora.lib import escaping
from bora.report import paper
from bora.report.evidence import LEVEL, Claim, Evidence, format_tau


@dataclass(frozen=True)
class ReportTable:
    """A table for three kinds of reader.

    Attributes:
        data: plain numbers, for CSV.
        cells: the same as text for people; the same shape as `bold`.
        bold: which cells are set in bold.
        caption: one sentence or two.
    """

    name: str
    data: pd.DataFrame
    cells: pd.DataFrame
    bold: pd.DataFrame
    caption: str

    def _marked(self, text: Callable[[str], str], strong: Callable[[str], str]) -> pd.DataFrame:
        marked = {
            column: [
                strong(text(cell)) if bold and cell else text(cell)
                for cell, bold in zip(self.cells[column], self.bold[column], strict=True)
            ]
            for column in self.cells
        }
        return pd.DataFrame(marked).rename(columns=text)

    def markdown(self) -> str:
        """A pipe table with the caption below."""
        # Columns of numbers hold our own marks alone, such as [low, high], which are easier to read as they are.
        cells = {c: map(escaping.markdown, v) if self._is_text(c) else v for c, v in self.cells.items()}
        table = replace(self, cells=pd.DataFrame(cells))._marked(str, lambda cell: f"**{cell}**")
        align = ["left" if self._is_text(c) else "right" for c in self.cells.columns]
        return table.to_markdown(index=False, colalign=align, disable_numparse=True) + f"\n\n{self.caption}\n"

    def latex(self) -> str:
        """A booktabs tabular in a table environment."""
        table = self._marked(escaping.latex, lambda cell: rf"\textbf{{{cell}}}")
        columns = "".join("l" if self._is_text(c) else "r" for c in self.cells.columns)
        return table.to_latex(
            index=False,
            escape=False,
            caption=escaping.latex(self.caption),
            label=f"tab:{self.name}",
            column_format=columns,
            longtable=len(table) > 40,
        )

    def html(self) -> str:
        """A table element; the caption stands beside it in the page."""
        from html import escape

        table = self._marked(lambda cell: escape(escaping.one_line(cell)), lambda cell: f"<strong>{cell}</strong>")
        return table.to_html(index=False, escape=False, border=0)

    def _is_text(self, column: object) -> bool:
        return column in ("task", "run", "claim", "verdict", "numbers")

    def write(self, folder: Path) -> None:
        """NAME.csv, NAME.md, NAME.tex."""
        self.data.to_csv(folder / f"{self.name}.csv", index=False)
        (folder / f"{self.name}.md").write_text(self.markdown(), "utf-8")
        (folder / f"{self.name}.tex").write_text(self.latex(), "utf-8")


def is_talk_of_norway(evidence: Evidence) -> bool:
    """Whether the paper's numbers belong beside these."""
    return evidence.series.runs[0].summary["data"] == "talk_of_norway"


def table1(evidence: Evidence) -> ReportTable:
    """Learning rate, τ, perplexity (Table 1); the τ that validation chooses in bold."""
    series, best = evidence.series, evidence.best_tau
    several = len(series.seeds) > 1
    rows, cells = [], []
    published = paper.table1().set_index("tau") if is_talk_of_norway(evidence) else None
    for tau in series.taus:
        runs = series.at(tau)
        rates = sorted({run.summary["lr"] for run in runs})
        test, validation = evidence.over_seeds(tau), evidence.over_seeds(tau, "val")
        difference = evidence.difference(tau, best)
        row = {
            "learning_rate": rates[0] if len(rates) == 1 else " to ".join(f"{r:g}" for r in (rates[0], rates[-1])),
            "tau": tau,
            "perplexity": test.value,
            "perplexity_low": test.low,
            "perplexity_high": test.high,
            "val_perplexity": validation.value,
            "seeds": len(runs),
        }
        cell = {
            "learning rate": f"{row['learning_rate']:g}" if len(rates) == 1 else row["learning_rate"],
            "τ": format_tau(tau),
            "validation perplexity": f"{validation.value:.2f}",
        }
        if not evidence.by_batch:
            cell["test perplexity"] = f"{test.value:.2f}"
        if several:
            half = (test.high - test.low) / 2
            cell["± (95 %, seeds)"] = "" if math.isnan(half) else f"{half:.2f}"
            cell["seeds"] = str(len(runs))
        row |= {"nll_minus_best": math.nan, "nll_minus_best_low": math.nan, "nll_minus_best_high": math.nan}
        if difference is not None:
            o = difference.overall
            row |= {"nll_minus_best": o.value, "nll_minus_best_low": o.low, "nll_minus_best_high": o.high}
        cell["nats a token above the best τ [95 %, tasks]"] = "" if difference is None else f"{difference.overall:+.4f}"
        if published is not None:
            theirs = published["perplexity"].get(tau, math.nan)
            row["paper_perplexity"] = theirs
            cell["paper"] = "" if math.isnan(theirs) else f"{theirs:.2f}"
        rows.append(row)
        cells.append(cell)
    data, text = pd.DataFrame(rows), pd.DataFrame(cells)
    bold = pd.DataFrame(False, index=text.index, columns=text.columns)
    bold.loc[data["tau"] == best, :] = True
    if published is not None and data["paper_perplexity"].notna().any():
        bold["paper"] = data["paper_perplexity"] == data["paper_perplexity"].min()
    caption = (
        f"{evidence.measure.capitalize()} over all tasks by τ. Bold: the τ that validation chooses, "
        f"{format_tau(best)}; test has no say in it."
    )
    if several:
        caption += " Perplexities are means over seeds, ± half a 95 % t interval over seeds."
    caption += " The last column is the paired difference of the NLL, a 95 % bootstrap over tasks in brackets."
    caption += " In the paper's column bold is its best." * (published is not None)
    return ReportTable("table1", data, text, bold, caption)


def table2(evidence: Evidence) -> ReportTable:
    """Perplexity, task × τ (Table 2); the best of each row in bold."""
    taus = evidence.series.taus
    means = pd.DataFrame({tau: evidence.by_task(tau).mean(axis=1) for tau in taus})
    if is_talk_of_norway(evidence):
        ours = {_plain_name(task): task for task in means.index}
        theirs = paper.table2().rename(index=ours)
        published = theirs.reindex(index=means.index)
        published = published.loc[:, published.notna().any()]
    else:
        published = pd.DataFrame(index=means.index)
    means = means.sort_index()
    published = published.reindex(means.index)
    data = means.rename(columns=lambda tau: f"tau={'inf' if math.isinf(tau) else format(tau, 'g')}")
    text = means.map(lambda x: f"{x:.2f}").rename(columns=lambda tau: f"τ = {format_tau(tau)}")
    bold = means.eq(means.min(axis=1), axis=0).set_axis(text.columns, axis=1)
    for tau in published.columns.astype(float):
        data[f"paper_tau={tau:g}"] = published[tau]
        column = f"paper, τ = {format_tau(tau)}"
        text[column] = published[tau].map(lambda x: "" if math.isnan(x) else f"{x:.2f}")
        bold[column] = published[tau].eq(published.min(axis=1))
    overall = {c: evidence.over_seeds(t).value for c, t in zip(text.columns, taus, strict=False)}
    data = data.rename_axis("task").reset_index()
    text = text.rename_axis("task").reset_index()
    bold = bold.reset_index(drop=True)
    bold.insert(0, "task", False)
    lowest = min(overall.values())
    text.loc[len(text)] = {
        "task": "all",
        **{c: f"{overall[c]:.2f}" if c in overall else "" for c in text.columns if c != "task"},
    }
    bold.loc[len(bold)] = {"task": False, **{c: overall.get(c) == lowest for c in text.columns if c != "task"}}
    seeds = [len(evidence.series.at(tau)) for tau in taus]
    caption = f"{evidence.measure.capitalize()} of each task by τ; the best of each row in bold."
    if max(seeds) > 1:
        of_each = f"{seeds[0]} seeds" if min(seeds) == max(seeds) else f"each τ's seeds, {min(seeds)} to {max(seeds)}"
        caption += f" Means over {of_each}."
    return ReportTable("table2", data, text, bold, caption)


def _plain_name(name: str) -> str:
    """A speaker's name as the paper's Table 2 writes it."""
    return re.sub(r"\.", "", name.lower()).strip()


def claims_table(claims: list[Claim]) -> ReportTable:
    """The paper's claims with their verdicts; no cell is bold."""
    cells = pd.DataFrame([vars(claim) for claim in claims], columns=["claim", "verdict", "numbers"])
    caption = f"The paper's claims held against these runs; intervals in brackets are {LEVEL:.0%}, over tasks."
    return ReportTable("claims", cells, cells, cells.map(lambda cell: False), caption)
