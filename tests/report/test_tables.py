"""A sweep with known numbers gives exactly the known tables, as CSV, Markdown, LaTeX and HTML."""

import math
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from bora.report import paper
from bora.runs.values import write_json
from tests.report.runs import write_run


@pytest.mark.figures("pdf")
def test_known_numbers_give_the_known_tables(sweep, report, tmp_path):
    code, out, err = report(sweep)
    assert (code, err.count("figure 6 is left out: ")) == (0, 1)  # there are no checkpoints
    drawn = list((tmp_path / "report").glob("figure*.png"))
    assert len(drawn) == 8
    for file in drawn:
        assert file.stat().st_size > 3000
        assert file.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    table1 = pd.read_csv(tmp_path / "report/table1.csv")
    assert table1["tau"].tolist() == [0, 10, 100, math.inf]
    assert table1["learning_rate"].tolist() == [1e-4, 1e-3, 1e-3, 1e-3]
    assert table1["perplexity"].tolist() == pytest.approx([21.1, 13.1, 13.6, 15.6])
    assert table1["val_perplexity"].tolist() == pytest.approx([20.1, 12.1, 11.1, 15.1])
    assert len(pd.read_csv(tmp_path / "report/claims.csv")) == 5
    # Two values 0.2 apart: s/√2 = 0.1, and t with one degree of freedom is 12.706 at 97.5 %.
    assert (table1["perplexity_high"] - table1["perplexity"]).tolist() == pytest.approx([1.2706] * 4, rel=1e-4)
    table2 = pd.read_csv(tmp_path / "report/table2.csv")
    assert table2.columns.tolist() == ["task", "tau=0", "tau=10", "tau=100", "tau=inf"]
    assert table2["task"].tolist() == ["ann", "bo", "cy"]
    np.testing.assert_allclose(
        table2.iloc[:, 1:], [[22.1, 13.6, 14.1, 15.1], [20.1, 12.6, 12.1, 16.1], [21.6, 13.1, 14.6, 15.6]]
    )

    lines = (tmp_path / "report/table1.md").read_text().splitlines()
    bold = [line for line in lines if "**" in line]
    assert len(bold) == 1  # validation chooses 100, although test would choose 10
    assert [cell.strip() for cell in bold[0].split("|")][2:5] == ["**100**", "**11.10**", "**13.60**"]
    rows = (tmp_path / "report/table2.md").read_text().splitlines()[2:6]
    assert [re.findall(r"\*\*([\d.]+)\*\*", row) for row in rows] == [["13.60"], ["12.10"], ["13.10"], ["13.10"]]
    latex = (tmp_path / "report/table2.tex").read_text()
    assert r"ann & 22.10 & \textbf{13.60} & 14.10 & 15.10 \\" in latex
    assert r"$\tau$ = $\infty$" in latex
    page = (tmp_path / "report/index.html").read_text()
    assert "<strong>13.60</strong>" in page
    assert page.count("<svg") == 8
    assert not re.search(r'(src|href)="(?!#)', page)  # nothing is fetched
    assert re.search(r"every task is better than on its own \(τ = 0\): 3 of 3 tasks; perplexity .*: confirmed", out)


def test_a_report_on_talk_of_norway_shows_the_papers_numbers(tmp_path, report):
    known = {100.0: (1e-3, 12.0, 13.0, {"Abid Q. Raja": 13.5, "Somebody Else": 12.5, "Aksel Hagen": 13.0})}
    write_run(tmp_path / "s/100", 100.0, known=known, data__name="talk_of_norway")
    assert report("s")[0] == 0
    table1 = pd.read_csv(tmp_path / "report/table1.csv")
    assert table1["paper_perplexity"].tolist() == [12.82]
    table2 = pd.read_csv(tmp_path / "report/table2.csv").set_index("task")
    assert table2["paper_tau=100"].dropna().to_dict() == {"Abid Q. Raja": 11.60, "Aksel Hagen": 11.84}


def test_tables_1_and_2_equal_the_papers():
    assert paper.table1().shape == (6, 3)
    table2 = paper.table2()
    assert table2.shape == (25, 6)
    assert (table2.idxmin(axis=1) == 100).all()  # "a precision parameter of 100 gives the best perplexity for all"
    shared = Path(__file__).parents[2].parent / "shared/paper"
    if shared.is_dir():
        assert table2.to_numpy().tolist() == pd.read_csv(shared / "table2.csv", index_col=0).to_numpy().tolist()
        theirs = pd.read_csv(shared / "table1.csv")
        pd.testing.assert_frame_equal(paper.table1(), theirs, check_dtype=False)


def test_scores_of_answers_are_tabulated_by_tau_with_links_to_their_pages(tmp_path, report):
    chrf = {(0.0, 0): 0.25, (10.0, 0): 0.5, (10.0, 1): 0.75}
    for (tau, seed), value in chrf.items():
        folder = write_run(tmp_path / f"s/tau={tau:g},seed={seed}", tau, seed)
        means = {who: {"chrf": {"value": v, "low": v, "high": v}} for who, v in (("task", value), ("base", 0.125))}
        (folder / "evaluation/new").mkdir(parents=True)
        write_json(folder / "evaluation/new/summary.json", {"answers": means | {"task − base": means["task"]}})
    (folder.parent / "tau=0,seed=0/evaluation/plain").mkdir()
    write_json(folder.parent / "tau=0,seed=0/evaluation/plain/summary.json", {"answers": None})
    assert report("s")[0] == 0
    table = pd.read_csv("report/answers-new.csv")
    rows = [("task", 0, 0.25, 1), ("task", 10, 0.625, 2), ("base", 0, 0.125, 1), ("base", 10, 0.125, 2)]
    assert [tuple(row) for row in table.itertuples(index=False)] == rows
    page = Path("report/index.html").read_text("utf-8")
    links = [unquote(link) for link in re.findall(r'href="([^"]+/answers.html)"', page)]
    assert links == [f"../s/tau={tau:g},seed={seed}/evaluation/new/answers.html" for tau, seed in chrf]
    assert "<td>0.625</td>" in page
