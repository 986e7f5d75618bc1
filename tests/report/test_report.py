"""The report on a hand-made sweep of known numbers gives exactly the known tables; broken folders are reported."""

import json
import math
import re
from functools import cache, partial
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import bora.commands.report
from bora.config.compose import compose_config
from bora.lib.names import format_tau, latex
from bora.report import figures, paper
from bora.report.authors import find_guesses, reliability
from bora.report.claims import judge_claims
from bora.report.curves import curves_by_task, learning_curves
from bora.report.drawing import MAX_AXIS_NAMES
from bora.report.evidence import Evidence, rank_correlation
from bora.report.intervals import Interval, bootstrap, weighted_mean
from bora.report.series import read_runs, series_of
from bora.report.similarity import compare_tasks, explained_variance
from bora.report.variance import spread
from bora.runs.directory import RunDirectory
from bora.runs.values import to_yaml, write_json

# τ → (learning rate, validation perplexity, test perplexity, test perplexity by task)
KNOWN = {
    0.0: (1e-4, 20.0, 21.0, {"ann": 22.0, "bo": 20.0, "cy": 21.5}),
    10.0: (1e-3, 12.0, 13.0, {"ann": 13.5, "bo": 12.5, "cy": 13.0}),
    100.0: (1e-3, 11.0, 13.5, {"ann": 14.0, "bo": 12.0, "cy": 14.5}),
    math.inf: (1e-3, 15.0, 15.5, {"ann": 15.0, "bo": 16.0, "cy": 15.5}),
}
N_TRAIN = {"ann": 10, "bo": 20, "cy": 30}


@cache
def base_settings() -> dict:
    words = ["data=table", "data.path=t.csv", "logger=none", "trainer.max_epochs=9", "name=s"]
    return compose_config(words)[0].model_dump()


def write_run(folder: Path, tau: float, seed: int = 0, shift: float = 0.0, known=None, **config) -> Path:
    """A finished run's folder with the known numbers, all perplexities higher by `shift`."""
    lr, val, test, tasks = (known or KNOWN)[tau]
    folder.mkdir(parents=True, exist_ok=True)
    settings = base_settings() | {"tau": tau, "seed": seed}
    for key, value in config.items():
        group, name = key.split("__")
        settings[group] = settings[group] | {name: value}
    (folder / "config.yaml").write_text(to_yaml(settings))
    rows = [(0, 9, val + 9), (1, 19, val + 3), (2, 29, val), (3, 39, val + 1), (4, 40, val)]  # the last: after training
    metrics = pd.DataFrame(rows, columns=["epoch", "step", "val/perplexity"]).assign(
        **{"val/nll": 1.0, "val/c": math.nan}
    )
    metrics.to_csv(folder / "metrics.csv", index=False)
    per_task = pd.DataFrame(
        {
            "task": list(tasks),
            "n_train": [N_TRAIN.get(t, 4 + i * i % 97) for i, t in enumerate(tasks)],
            "n_val": 5,
            "n_test": 5,
            "train_tokens": 100,
            "test_tokens": 50,
            "val_nll": math.log(val),
            "val_perplexity": val + shift,
            "test_nll": [math.log(p + shift) for p in tasks.values()],
            "test_perplexity": [p + shift for p in tasks.values()],
            "distance": np.arange(1.0, len(tasks) + 1),
            "effect": 0.01 * np.arange(len(tasks)) - 0.01,
            "effect_error": 0.01,
        }
    )
    per_task.to_csv(folder / "per_task.csv", index=False)
    summary = {
        "tau": "inf" if math.isinf(tau) else tau,
        "seed": seed,
        "model": "opt_mini",
        "data": settings["data"]["name"],
        "lr": lr,
        "val_perplexity": val + shift,
        "test_perplexity": test + shift,
        "base_test_perplexity": 99.0,
        "val_perplexity_macro": val + shift,
        "test_perplexity_macro": test + shift,
        "best_epoch": 3,
        "data_sha256": "abc",
        "versions": {"bora": "0"},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def sweep(tmp_path):
    for tau in KNOWN:
        for seed, shift in ((0, 0.0), (1, 0.2)):
            write_run(tmp_path / f"s/tau={tau:g},seed={seed}", tau, seed, shift)
    return tmp_path / "s"


@pytest.fixture
def report(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    return partial(call, bora.commands.report.main, "-o", "report")  # of several the last one counts


def evidence_of(*folders: Path) -> Evidence:
    runs, problems = read_runs(folders)
    (series,), more = series_of(runs)
    assert problems == more == []
    return Evidence(series)


@pytest.mark.figures("pdf")
def test_known_numbers_give_the_known_tables(sweep, report, tmp_path):
    code, out, err = report(sweep)
    assert (code, err.count("figure 6 is left out: ")) == (0, 1)  # no checkpoints here
    drawn = list((tmp_path / "report").glob("figure*.png"))
    assert len(drawn) == 8
    for file in drawn:
        assert file.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    table1 = pd.read_csv(tmp_path / "report/table1.csv")
    assert table1["tau"].tolist() == [0, 10, 100, math.inf]
    assert table1["learning_rate"].tolist() == [1e-4, 1e-3, 1e-3, 1e-3]
    assert table1["perplexity"].tolist() == pytest.approx([21.1, 13.1, 13.6, 15.6])
    assert table1["val_perplexity"].tolist() == pytest.approx([20.1, 12.1, 11.1, 15.1])
    claims_csv = pd.read_csv(tmp_path / "report/claims.csv")
    assert claims_csv["verdict"].isin(["confirmed", "refuted", "undecided"]).all()
    assert len(claims_csv) == 5
    # Two values 0.2 apart: s/√2 = 0.1, and t with one degree of freedom has 12.706 at 97.5 %.
    assert (table1["perplexity_high"] - table1["perplexity"]).tolist() == pytest.approx([1.2706] * 4, rel=1e-4)
    table2 = pd.read_csv(tmp_path / "report/table2.csv")
    assert table2.columns.tolist() == ["task", "tau=0", "tau=10", "tau=100", "tau=inf"]
    assert table2["task"].tolist() == ["ann", "bo", "cy"]
    np.testing.assert_allclose(
        table2.iloc[:, 1:], [[22.1, 13.6, 14.1, 15.1], [20.1, 12.6, 12.1, 16.1], [21.6, 13.1, 14.6, 15.6]]
    )

    lines = (tmp_path / "report/table1.md").read_text().splitlines()
    bold = [line for line in lines if "**" in line]
    assert len(bold) == 1  # validation chooses 100, though test would have chosen 10
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
    for number in range(1, 6):
        for ending in ("png", "pdf"):
            assert (tmp_path / f"report/figure{number}.{ending}").stat().st_size > 3000
    assert re.search(r"every task is better than on its own \(τ = 0\): 3 of 3 tasks; perplexity .*: confirmed", out)


def with_learned(folder: Path, tau: float, seed: int, shift: float) -> Path:
    """A run at τ = 10 made into one that learned its τ."""
    write_run(folder, 10.0, seed, shift)
    config = RunDirectory(folder).config().model_dump() | {"tau": "learn"}
    (folder / "config.yaml").write_text(to_yaml(config))
    summary = json.loads((folder / "summary.json").read_text())
    learned = {"tau": tau, "c": 0.0, "c_spread": 0.0}
    if not math.isinf(tau):
        learned |= {"tau_interval": [tau / 2, tau * 2], "c": 0.5, "c_interval": [0.25, 0.75], "c_spread": 0.1}
    write_json(folder / "summary.json", summary | {"tau": tau, "learned": learned})
    return folder


@pytest.mark.figures
def test_runs_that_learned_tau_stand_beside_the_grid_and_have_no_say_in_its_choice(sweep, report, tmp_path):
    for seed, tau in ((0, 33.0), (1, math.inf)):
        with_learned(sweep / f"tau=learn,seed={seed}", tau, seed, shift=-1.0 + 0.2 * seed)
    code, out, _ = report(sweep)
    assert code == 0
    table1 = pd.read_csv(tmp_path / "report/table1.csv")
    assert table1["tau"].tolist() == [0, 10, 100, math.inf]
    learned = pd.read_csv(tmp_path / "report/learned.csv")
    assert learned[["seed", "tau", "tau_low", "c"]].iloc[0].tolist() == [0, 33, 16.5, 0.5]
    assert learned[["seed", "tau", "c"]].iloc[1].tolist() == [1, math.inf, 0]
    # Against τ = 100, which validation chooses; each seed against itself.
    tasks = {"ann": (12.5, 14.0), "bo": (11.5, 12.0), "cy": (12.0, 14.5)}
    expected = np.mean([[math.log(a + s) - math.log(b + s) for s in (0, 0.2)] for a, b in tasks.values()])
    assert learned["nll_minus_best_given"].iloc[0] == pytest.approx(expected)
    assert "against τ = 100." in (tmp_path / "report/index.html").read_text()
    assert "33 [16.5, 66]" in out


def test_runs_that_learned_tau_have_a_report_of_their_own_where_there_is_no_grid(report, tmp_path):
    for seed, tau in enumerate((33.0, 20.0, 50.0)):
        with_learned(tmp_path / f"s/{seed}", tau, seed, shift=0.0)
    code, out, _ = report("s")
    assert (code, "33 [16.5, 66]" in out) == (0, True)
    table1 = pd.read_csv(tmp_path / "report/table1.csv")  # one setting, and no τ of a seed's own against another
    assert table1[["tau", "seeds"]].to_numpy().tolist() == [[33, 3]]
    page = (tmp_path / "report/index.html").read_text()
    assert ("τ = 33 was learned" in page, "τ learned:" in page) == (True, False)
    for limit in (0.0, math.inf):
        write_run(tmp_path / f"s/{limit}", limit)
    (series,), _ = series_of(read_runs([tmp_path / "s"])[0])
    assert (series.taus, series.only_learned, len(series.learned_beside)) == ([0, math.inf], False, 3)
    for seed in range(3):  # with levels they are no runs beside the limits, but between them
        of_level(tmp_path / f"s/{seed}", 20.0)
    (series,), _ = series_of(read_runs([tmp_path / "s"])[0])
    assert (series.taus, series.only_learned, series.learned_beside) == ([0, 33, math.inf], True, [])


def test_a_learned_run_of_one_model_is_no_run_at_infinity(report, tmp_path):
    for seed, tau in enumerate((math.inf, 202.0)):
        with_learned(tmp_path / f"s/{seed}", tau, seed, shift=0.0)
    (series,), _ = series_of(read_runs([tmp_path / "s"])[0])
    assert (series.taus, series.only_learned, series.learned_beside) == ([202], True, [])
    assert report("s")[0] == 0
    page = (tmp_path / "report/index.html").read_text()
    assert "this is the median over seeds where it is finite" in page
    assert "among those given" not in page
    # Of another form, at given τ: its limits are completed by runs at τ = ∞ alone.
    for seed, tau in ((0, 10.0), (0, math.inf)):
        write_run(tmp_path / f"s/tau={tau}", tau, seed, prior__parameterization="centered")
    found, _ = series_of(read_runs([tmp_path / "s"])[0])
    assert [(run.tau, run.seed) for one in found if one.taus[0] == 10 for run in one.runs] == [(10, 0), (math.inf, 0)]


def test_learned_taus_of_levels_are_one_series_beside_each_of_the_grid(report, tmp_path):
    for seed, level in enumerate((19.0, 22.0)):
        folder = with_learned(tmp_path / f"s/learn{seed}", 33.0, seed, shift=-1.0)
        of_level(folder, level)
        write_summary(folder, learned={"levels": {"party": {"tau": level, "c": 0.5, "c_spread": 0.0}}})
        for tau in (10.0, 100.0):
            write_run(tmp_path / f"s/{tau},{seed}", tau, seed)
            of_level(tmp_path / f"s/{tau},{seed}", 10 * tau)
    found, _ = series_of(read_runs([tmp_path / "s"])[0])
    assert [[run.tau for run in series.runs] for series in found] == [[10, 10], [100, 100]]
    assert [len(series.learned_beside) for series in found] == [2, 2]
    code, _, _ = report("s")
    table = pd.concat([pd.read_csv(file) for file in (tmp_path / "report").rglob("learned.csv")])
    assert (code, table["level"].tolist()) == (0, ["tasks", "party"] * 4)


def test_one_tau_for_all_levels_is_a_grid(tmp_path):
    for tau in (10.0, 100.0):
        of_level(write_run(tmp_path / f"s/{tau}", tau, 0), tau)
    found, _ = series_of(read_runs([tmp_path / "s"])[0])
    assert [series.taus for series in found] == [[10, 100]]


def of_level(folder: Path, tau: float) -> None:
    """Give a run a level, party, of that τ."""
    config = RunDirectory(folder).config().model_dump()
    (folder / "config.yaml").write_text(to_yaml(config | {"data": config["data"] | {"levels": ["party"]}}))
    write_summary(folder, levels={"party": tau})


def write_summary(folder: Path, **more) -> None:
    """Add to a run's summary, also within what was learned."""
    summary = json.loads((folder / "summary.json").read_text())
    more = {k: summary.get(k, {}) | v if isinstance(v, dict) else v for k, v in more.items()}
    write_json(folder / "summary.json", summary | more)


def test_a_report_goes_into_the_folder_it_is_about_and_never_over_anothers(sweep, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = next(sweep.glob("tau=0,seed=1"))
    for words, place in (((sweep,), "s/report"), ((run,), "s/tau=0,seed=1/report"), ((run, sweep), "s/report")):
        code, out, err = call(bora.commands.report.main, *words)
        ours = words != (run, sweep)
        assert (code, f"{place} holds a page about other runs" in err) == ((0, False) if ours else (2, True))
        assert f"report: {tmp_path / place / 'index.html'}" in out or not ours
    assert call(bora.commands.report.main, sweep)[0] == 0  # its own once more; the page inside is no run


def test_an_archive_gives_the_report_of_its_folders(sweep, report, tmp_path):
    for file in sweep.glob("*/metrics.csv"):  # of which an archive has nothing
        file.unlink()
    report("s", "-o", "folders")  # as the page names the runs' folders
    code, out, err = report("s", "--archive", "runs.csv.gz")
    assert (code, err) == (0, "")
    assert out == f"{2 * len(KNOWN)} runs: {tmp_path / 'runs.csv.gz'}\n"
    sweep.rename(tmp_path / "gone")
    report("runs.csv.gz", "-o", "archive")
    files = sorted(path.name for path in (tmp_path / "folders").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "archive").iterdir())
    for name in set(files) - {"runs.txt"}:
        assert (tmp_path / "folders" / name).read_bytes() == (tmp_path / "archive" / name).read_bytes(), name
    (tmp_path / "gone").rename(sweep)  # a run that has its folder again is read from there
    next(sweep.glob("tau=0,seed=1/summary.json")).unlink()
    runs, problems = read_runs([tmp_path])
    assert len(runs) == 2 * len(KNOWN) - 1
    assert [line for line in problems if "is unfinished" in line] == problems != []


def test_differences_are_paired_and_weighted_by_tokens(tmp_path):
    evidence = evidence_of(*(write_run(tmp_path / f"{t}", t) for t in KNOWN))
    assert (evidence.best_tau, evidence.best_middle_tau) == (100, 100)  # by validation; test says 10
    difference = evidence.difference(100.0, 0.0)
    expected = np.log([14 / 22, 12 / 20, 14.5 / 21.5])
    np.testing.assert_allclose(difference.by_task, expected)
    assert difference.overall.value == pytest.approx(expected.mean())
    assert difference.overall.low == pytest.approx(expected.min())  # of 3 tasks a draw may be one task thrice
    assert difference.overall.high == pytest.approx(expected.max())
    assert difference.improvement.tolist() == pytest.approx([100 * 8 / 22, 40, 100 * 7 / 21.5])
    assert evidence.difference(100.0, 100.0) is None


def test_a_bootstrap_is_close_to_the_normal_interval_and_a_rank_correlation_is_spearmans():
    values = np.random.default_rng(1).normal(0.3, 2.0, 400)
    interval = bootstrap(weighted_mean, values, np.ones(400))
    half = 1.96 * values.std() / 20
    assert (interval.low, interval.high) == pytest.approx((interval.value - half, interval.value + half), abs=0.02)
    assert bootstrap(weighted_mean, np.array([1.0, 3.0]), np.array([3.0, 1.0])).value == 1.5
    x, y = map(pd.Series, np.random.default_rng(0).integers(0, 9, (2, 30)))
    assert rank_correlation(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert math.isnan(rank_correlation(pd.Series([1, 1, 1, 1]), x[:4]).value)


def test_claims_follow_the_numbers(tmp_path, monkeypatch):
    evidence = evidence_of(*(write_run(tmp_path / f"{t}", t) for t in KNOWN))
    best, *_ = judge_claims(evidence)
    assert (best.verdict, best.numbers.endswith("3 tasks are too few")) == ("undecided", True)
    monkeypatch.setattr("bora.report.claims.MIN_TASKS", 3)
    verdicts = [c.verdict for c in judge_claims(evidence)]
    assert verdicts == ["confirmed", "confirmed", "confirmed", "undecided", "undecided"]  # 3 tasks: no ρ
    worse = {**KNOWN, math.inf: (1e-3, 10.0, 10.5, {"ann": 10.0, "bo": 11.0, "cy": 10.5})}
    folders = [write_run(tmp_path / f"w{t}", t, known=worse) for t in KNOWN]
    best, alone, one, *_ = judge_claims(evidence_of(*folders))
    assert (best.verdict, alone.verdict, one.verdict) == ("refuted", "confirmed", "refuted")
    assert "validation chooses τ = ∞" in best.numbers
    # The largest of the τ tried is not one model.
    best, alone, one, *_ = judge_claims(evidence_of(*(tmp_path / f"{t}" for t in KNOWN if t < math.inf)))
    assert best.numbers.endswith("both limits, τ = 0 and τ = ∞, are needed")
    assert alone.verdict == "confirmed"
    assert (one.verdict, one.numbers) == ("undecided", "there is no run to compare with")


def test_series_are_told_apart_and_limits_belong_to_every_parameterisation(tmp_path):
    for tau in (0.0, 10.0, math.inf):
        write_run(tmp_path / f"n/{tau}", tau)
    write_run(tmp_path / "c/10", 10.0, prior__parameterization="centered")
    write_run(tmp_path / "c/again", 10.0, prior__parameterization="centered")
    write_run(tmp_path / "lr/10", 10.0, optim__lr=0.5)
    runs, problems = read_runs([tmp_path])
    series, left_out = series_of(runs)
    assert problems == []
    found = {s.label: s.taus for s in series}
    assert found == {
        "t · opt_mini · optim.lr=null · prior.parameterization=centered": [0, 10, math.inf],
        "t · opt_mini · optim.lr=null · prior.parameterization=noncentered": [0, 10, math.inf],
        "t · opt_mini · optim.lr=0.5 · prior.parameterization=noncentered": [10],
    }
    assert len(left_out) == 1
    assert "has the same settings, τ and seed" in left_out[0]


def test_the_precision_that_was_computed_in_tells_series_apart_not_how_it_was_asked_for(tmp_path):
    for tau, asked, taken in ((0.0, "float32", "float32"), (10.0, "auto", "float32"), (100.0, "auto", "bfloat16")):
        folder = write_run(tmp_path / f"{tau}", tau, model__dtype=asked)
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | {"dtype": taken}))
    series, _ = series_of(read_runs([tmp_path])[0])
    assert {s.label: s.taus for s in series} == {
        "t · opt_mini · model.dtype=float32": [0, 10],
        "t · opt_mini · model.dtype=bfloat16": [100],
    }


def test_several_series_get_a_folder_each(tmp_path, report, figure_6_alone):
    write_run(tmp_path / "n/10", 10.0)
    write_run(tmp_path / "c/10", 10.0, prior__parameterization="centered")
    assert report("n", "c", "-o", "out")[0] == 0
    assert len(list((tmp_path / "out").glob("*/table1.csv"))) == 2
    assert (tmp_path / "out/index.html").read_text().count("<h2") == 2


def test_broken_unfinished_and_failed_runs_are_named_and_the_rest_reported(sweep, report, tmp_path, figure_6_alone):
    (sweep / "tau=0,seed=0/summary.json").unlink()  # was interrupted
    (sweep / "tau=0,seed=1/per_task.csv").write_text("task,n_train\na,1\n")
    (sweep / "tau=10,seed=0/summary.json").write_text("{")
    (sweep / "tau=10,seed=1/config.yaml").unlink()
    (sweep / "tau=100,seed=0/summary.json").write_text('{"tau": 100, "seed": 0}')
    (sweep / "runs.csv.gz").write_text("not one")
    failed = sweep / "tau=1e6,seed=0"
    failed.mkdir()
    (failed / "failed.json").write_text(json.dumps({"error": "training diverged", "exit_code": 2}))
    code, _, err = report(sweep)
    assert code == 0
    assert "tau=0,seed=0 is unfinished; rerun the sweep's command" in err
    assert "tau=0,seed=1/per_task.csv is not readable: 'n_val'" in err
    assert "tau=10,seed=0/summary.json is not readable" in err
    assert "tau=10,seed=1/config.yaml is not readable" in err
    assert "tau=100,seed=0 lacks model, " in err
    assert "runs.csv.gz is no archive of runs" in err
    assert "tau=1e6,seed=0 failed: training diverged" in err
    assert pd.read_csv(tmp_path / "report/table1.csv")["tau"].tolist() == [100, math.inf]
    assert "training diverged" in (tmp_path / "report/index.html").read_text()


def test_learning_curves_are_the_validations_while_training_with_the_epoch_that_was_kept(sweep, tmp_path):
    with_learned(sweep / "tau=learn,seed=0", 33.0, 0, shift=0.0)
    series = evidence_of(sweep).series
    curves = [(run, RunDirectory(run.folder).validations()) for run in (*series.runs, *series.learned_beside)]
    figure = learning_curves(Evidence(series), curves)
    curve, kept = figure.axes[0].lines[:2]  # of τ = 0, seed 0
    assert curve.get_xydata().tolist() == [[1, 29], [2, 23], [3, 20], [4, 21]]
    assert kept.get_xydata().tolist() == [[3, 20]]
    assert len(figure.axes[0].lines) == 2 * 9
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["τ = 0", "τ = 10", "τ = 100", "τ = ∞", "τ learned"]
    given = [(run, table) for run, table in curves if run.learned is None]
    assert not learning_curves(Evidence(series), given).axes[0].texts
    with_c = [(run, table.assign(**{"val/c": [math.nan, 1, 0.5, 0.5][: len(table)]})) for run, table in curves]
    shown = learning_curves(Evidence(series), with_c).axes[0].texts
    assert [text.get_text() for text in shown] == ["c = 1", "c = 0.5"]
    assert learning_curves(Evidence(series), []) is None


@pytest.mark.figures
def test_a_damaged_metrics_file_is_named_and_the_others_drawn(sweep, report, tmp_path):
    (sweep / "tau=0,seed=0/metrics.csv").write_text("")
    code, _, err = report(sweep)
    assert (code, err.count("the learning curves lack a run: ")) == (0, 1)
    assert (tmp_path / "report/figure9.png").is_file()


def test_each_tasks_curve_is_its_validations_against_the_lowest(sweep):
    rows = [
        (v, v, task, p)
        for task, ps in {"ann": (20, 10, 15), "bo": (8, 12, 16), "cy": (1, 1, 1)}.items()
        for v, p in enumerate(ps, 1)
    ]
    runs = {run.tau: run for run in evidence_of(sweep).series.runs if run.seed == 0}
    by_task = pd.DataFrame(rows, columns=["validation", "epoch", "task", "val_perplexity"])
    RunDirectory(runs[100].folder).write_by_task(by_task)
    figure = curves_by_task(evidence_of(sweep), [(runs[100], RunDirectory(runs[100].folder).by_task())])
    shown = {ax.get_title("left"): ax.lines for ax in figure.axes}
    assert shown["ann"][0].get_xydata().tolist() == [[1, 2], [2, 1], [3, 1.5]]
    assert shown["bo"][0].get_xydata().tolist() == [[1, 1], [2, 1.5], [3, 2]]
    assert shown["ann"][1].get_xydata().tolist() == [[2, 1]]
    assert curves_by_task(evidence_of(sweep), []) is None


def test_the_gain_of_each_task_has_a_t_interval_over_seeds(sweep, tmp_path):
    ends = evidence_of(sweep).difference(100.0, 0.0).improvement_ends
    first, second = math.log(14.0 / 22.0), math.log(14.2 / 22.2)
    half = 12.7062 * abs(first - second) / 2  # t of one degree of freedom; s/√2 is half the distance
    expected = [-100 * math.expm1((first + second) / 2 + sign * half) for sign in (1, -1)]
    assert ends.loc["ann"].tolist() == pytest.approx(expected, rel=1e-4)
    alone = evidence_of(*(write_run(tmp_path / f"{t}", t) for t in KNOWN))
    assert alone.difference(100.0, 0.0).improvement_ends is None


def write_guesses(run: Path) -> None:
    """Five documents of an evaluation, of which the run was trained on the last but one; the last is of no task."""
    rows = [("ann", "ann", 0.95), ("ann", "bo", 0.55), ("bo", "bo", 0.92), ("cy", "cy", 0.9), ("", "cy", 0.9)]
    documents = pd.DataFrame(rows, columns=["task", "best", "posterior"]).assign(n_scored=3, row=range(5))
    folder = run / "evaluation/new"
    folder.mkdir(parents=True)
    documents.assign(trained_on=[False, False, False, True, False]).to_csv(folder / "documents.csv", index=False)
    nats = np.log([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.1, 0.1, 0.8]]).ravel()
    table = pd.DataFrame({"row": np.repeat(range(5), 3), "task": ["ann", "bo", "cy"] * 5, "log_likelihood": nats})
    table.to_csv(folder / "likelihoods.csv", index=False)
    classification = {"n": 3, "accuracy": 2 / 3, "low": 0.208, "high": 0.939, "chance": 1 / 3}
    classification["calibration_error_at_1"] = 0.25
    about = {"prior": "uniform", "include_trained": False, "temperature": 0.5}
    write_json(folder / "summary.json", about | {"classification": classification})


@pytest.mark.figures
def test_who_wrote_a_text_is_shown_by_task_and_by_how_sure_the_model_is(sweep, report, tmp_path):
    write_guesses(sweep / "tau=100,seed=1")
    guesses = find_guesses(evidence_of(sweep))
    shares = guesses.confusion(["cy", "ann", "bo"])
    np.testing.assert_array_equal(shares, [[math.nan] * 3, [0, 0.5, 0.5], [0, 0, 1]])
    bins = reliability(guesses.sureness)
    assert bins.index.tolist() == [6, 10]
    assert bins["probability"].tolist() == pytest.approx([0.55, 0.935])
    assert bins[["accuracy", "n"]].to_numpy().tolist() == [[0, 1], [1, 2]]
    probability, right = guesses.sureness_at_1
    assert (probability.tolist(), right.tolist()) == (pytest.approx([0.5, 0.6, 0.8]), [True, True, True])
    assert report(sweep)[0] == 0
    page = (tmp_path / "report/index.html").read_text("utf-8")
    assert "new: 3 documents under tau=100,seed=1" in page
    assert "66.7 % [20.8, 93.9] (95 % Wilson interval), by chance for 33 %. A grey row is a task" in page
    ece = (abs(0.05 + 0.08) + 0.55) / 3  # both in the last bin, and one in the sixth
    figure = figures.authorship(evidence_of(sweep), guesses, None)
    assert figure.axes[1].get_title() == f"How sure and how right: ECE {ece:.3f}"


@pytest.mark.processes  # many tasks take long to draw
@pytest.mark.figures
def test_names_show_where_the_pointer_is_unless_there_are_too_many(sweep, report, tmp_path, monkeypatch):
    assert report(sweep)[0] == 0
    page = (tmp_path / "report/index.html").read_text("utf-8")
    # A line in figure 2, two points in 3, one in 4 and in 5, a bar and a point in 7, a bar and three points in 8.
    titles = re.findall("<g><title>(.*?)</title>", page)
    assert {name: titles.count(name) for name in titles} == dict.fromkeys(["ann", "bo", "cy"], 11)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    monkeypatch.setattr("bora.report.drawing.MAX_HOVER_NAMES", 2)
    assert report(sweep)[0] == 0
    assert "<g><title>" not in (tmp_path / "report/index.html").read_text("utf-8")


@pytest.mark.parametrize("make", [lambda f: None, lambda f: f.mkdir()], ids=["no folder", "an empty folder"])
def test_nothing_to_report_is_bad_input(make, report, tmp_path):
    make(tmp_path / "x")
    code, out, err = report("x")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "report").exists()


def test_verify_names_the_files_that_were_changed(report, tmp_path):
    for tau in (0.0, 10.0):
        folder = RunDirectory(write_run(tmp_path / f"s/{tau:g}", tau))
        folder.write_summary(folder.summary())
    arguments = "s", "--verify", "--archive", "runs.csv.gz"  # as quick as a command can be
    assert report(*arguments)[0] == 0
    with (tmp_path / "s/10/per_task.csv").open("a") as file:
        file.write("\n")
    (tmp_path / "s/0/config.yaml").unlink()
    summary = tmp_path / "s/10/summary.json"  # from which the report is made
    summary.write_text(summary.read_text().replace('"seed": 0', '"seed": 1'))
    code, out, err = report(*arguments)
    assert (code, out) == (2, "")
    names = "0/config.yaml", "10/per_task.csv", "10/summary.json"
    changed = [f"bora: s/{name} is missing or was changed" for name in names]
    assert err.splitlines() == changed
    assert report("s", "--archive", "runs.csv.gz")[0] == 0  # unless asked, nothing is refused for that


@pytest.mark.processes  # many tasks take long to draw
@pytest.mark.figures
@pytest.mark.parametrize("n_tasks", [1, MAX_AXIS_NAMES + 1])
def test_any_number_of_tasks_can_be_drawn(n_tasks, tmp_path, report):
    rng = np.random.default_rng(0)
    names = [f"a task with quite a long name, number {i} & $x_{i}$" for i in range(n_tasks)]
    for tau, (lr, val, test, _) in KNOWN.items():
        tasks = {name: float(rng.uniform(5, 400)) for name in names}
        write_run(tmp_path / f"s/{tau}", tau, known={tau: (lr, val, test, tasks)})
    assert report("s")[0] == 0
    assert len(pd.read_csv(tmp_path / "report/table2.csv")) == n_tasks
    assert len(list((tmp_path / "report").glob("figure*.png"))) == 8


def checkpoint(folder: Path, theta: np.ndarray, names: list[str], form: str) -> None:
    """best.ckpt with θ_d − Θ as given."""
    mean, state = torch.full((1, theta.shape[1] // 2), 5.0), {}
    for factor, part in zip("AB", torch.tensor(theta).float().unflatten(1, (2, 1, -1)).unbind(1), strict=True):
        stem = f"adapters.stacks.layer.{factor}"
        state[f"{stem}_mean"] = mean
        state[stem if form == "centered" else f"{stem}_offset"] = part + mean * (form == "centered")
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(
        {"state_dict": state, "hyper_parameters": {"task_names": names, "layers": ["layer"]}},
        folder / "checkpoints/best.ckpt",
    )


@pytest.mark.parametrize("form", ["centered", "noncentered"])
def test_tasks_are_compared_by_the_cosine_of_their_deviations(tmp_path, form):
    theta = np.random.default_rng(0).normal(size=(6, 8))
    theta[4], theta[1] = theta[0] + 0.1 * theta[4], theta[3] - 0.1 * theta[1]
    run = evidence_of(write_run(tmp_path / "r", 10.0)).series.runs[0]
    checkpoint(run.folder, theta, list("abcdef"), form)
    found = compare_tasks(run)
    centred = theta - theta.mean(0)
    length = np.linalg.norm(centred, axis=1)
    np.testing.assert_allclose(found.cosines, centred @ centred.T / np.outer(length, length), atol=1e-5)
    order = found.order.tolist()
    assert sorted(order) == list(range(6))
    assert abs(order.index(0) - order.index(4)) == abs(order.index(1) - order.index(3)) == 1


def test_the_share_that_a_column_explains_is_the_between_group_sum_of_squares(tmp_path):
    x = np.random.default_rng(0).normal(size=(12, 5))
    x[:6] += 4
    x -= x.mean(0)
    groups = pd.Series(["p"] * 6 + ["q"] * 6)
    between = sum(len(x[g]) * (x[g].mean(0) ** 2).sum() for g in (groups == "p", groups == "q"))
    explained, chance, p_value = explained_variance(x @ x.T, groups)
    assert explained == pytest.approx(between / (x**2).sum())
    assert chance == pytest.approx(1 / 11, abs=0.02)  # (groups − 1) / (tasks − 1)
    assert p_value < 0.02


@pytest.mark.figures
def test_figure_6_is_coloured_by_a_column_of_the_table(tmp_path, report, figure_6_alone):
    rows = [("ann", "left"), ("bo", "right"), ("cy", "left")]
    table = pd.DataFrame(
        [(t, p, f"speech {i}") for t, p in rows for i in range(4)], columns=["task", "party", "text"]
    ).assign(**{"$\\frac$": "_under"})
    table.to_csv(tmp_path / "t.csv", index=False)
    where = {"data__path": str(tmp_path / "t.csv"), "data__task": "task"}
    folder = write_run(tmp_path / "s/10", 10.0, **where)
    write_run(tmp_path / "s/0", 0.0, **where)
    documents = table.assign(row=table.index, split="train", n_tokens=3, n_scored=2)
    documents[["row", "task", "split", "n_tokens", "n_scored"]].to_csv(folder / "documents.csv", index=False)
    checkpoint(folder, np.array([[1.0, 0, 0, 0], [0, 2, 0, 1], [1, 0.5, 0, 0]]), ["ann", "bo", "cy"], "noncentered")
    code, _, err = report("s", "--color-by", "party")
    assert code == 0
    assert "bora:" not in err
    assert "party explains" in (tmp_path / "report/index.html").read_text()
    assert report("s", "--color-by", "$\\frac$")[0] == 0
    code, _, err = report("s", "--color-by", "planet")
    assert code == 0
    assert "figure 6 has no colours: --color-by=planet" in err
    assert "no such column" in err
    assert (tmp_path / "report/figure6.png").is_file()
    table.iloc[4:].to_csv("t.csv", index=False)  # rows are of other tasks now
    code, _, err = report("s", "--color-by", "party")
    assert (code, "figure 6 has no colours: the corpus has changed" in err) == (0, True)


def test_talk_of_norway_gets_the_papers_numbers_beside_its_own(tmp_path, report, figure_6_alone):
    known = {100.0: (1e-3, 12.0, 13.0, {"Abid Q. Raja": 13.5, "Somebody Else": 12.5, "Aksel Hagen": 13.0})}
    write_run(tmp_path / "s/100", 100.0, known=known, data__name="talk_of_norway")
    assert report("s")[0] == 0
    table1 = pd.read_csv(tmp_path / "report/table1.csv")
    assert table1["paper_perplexity"].tolist() == [12.82]
    table2 = pd.read_csv(tmp_path / "report/table2.csv").set_index("task")
    assert table2["paper_tau=100"].to_dict() == {
        "Abid Q. Raja": 11.60,
        "Aksel Hagen": 11.84,
        "Somebody Else": pytest.approx(math.nan, nan_ok=True),
    }


def test_the_papers_tables_are_the_papers():
    assert paper.table1().shape == (6, 3)
    table2 = paper.table2()
    assert table2.shape == (25, 6)
    assert (table2.idxmin(axis=1) == 100).all()  # "a precision parameter of 100 gives the best perplexity for all"
    shared = Path(__file__).parents[2].parent / "shared/paper"
    if shared.is_dir():
        assert table2.to_numpy().tolist() == pd.read_csv(shared / "table2.csv", index_col=0).to_numpy().tolist()
        theirs = pd.read_csv(shared / "table1.csv")
        pd.testing.assert_frame_equal(paper.table1(), theirs, check_dtype=False)


def test_small_things():
    assert [format_tau(t) for t in (0.0, 1.0, 137.28, 1e4, 2e5, math.inf)] == ["0", "1", "137.28", "10⁴", "200000", "∞"]
    assert f"{Interval(1.0):.1f} {Interval(1.0, 0.5, 2.0):+.1f}" == "1.0 +1.0 [+0.5, +2.0]"
    assert [Interval(1, *ends).sign for ends in ((0.1, 2), (-2, -0.1), (-1, 1))] == [1, -1, 0]
    assert latex("50 % of a_b & τ = 10⁴") == r"50 \% of a\_b \& $\tau$ = 10$^4$"


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


def test_the_spread_of_effects_is_without_their_errors():
    effects, errors = np.array([0.04, 0.01, 0.03]), np.array([0.001, 0.002, math.nan])
    assert spread(effects, errors) == pytest.approx(
        math.sqrt(np.var(effects, ddof=1) - (0.001**2 + 0.002**2 + 0.0015**2) / 3)
    )


@pytest.mark.figures
def test_variances_are_tabulated_with_what_bora_variance_found(sweep, report, tmp_path):
    for seed in (0, 1):
        run = sweep / f"tau=100,seed={seed}"
        summary = json.loads((run / "summary.json").read_text()) | {"levels": {"party": 25.0}}
        (run / "summary.json").write_text(json.dumps(summary))
        units = {"level": "party", "unit": ["left", "right"], "test_tokens": [100, 50]}
        units |= {"effect": [0.03 + 0.02 * seed, 0.01], "effect_error": [0.001, 0.001]}
        pd.DataFrame(units).to_csv(run / "units.csv", index=False)
        per_task = pd.read_csv(run / "per_task.csv").assign(effect=[0.02, 0.04, 0.06])
        per_task["own_effect"], per_task["own_effect_error"] = per_task["effect"] / 4, 0.01
        per_task.to_csv(run / "per_task.csv", index=False)
    found = sweep / "tau=100,seed=0/variance"
    found.mkdir()
    shares = {"column": ["task", "party", "sex"], "units": [3, 2, 2], "share": [0.04, 0.02, 0.01], "p_value": 0.01}
    pd.DataFrame(shares | {"low": 0.001, "high": 0.1}).to_csv(found / "shares.csv", index=False)
    inferred = {"group": ["A", "B", "all"], "lower_tau": [1.0, 1, 2], "tau": [9.0, 9, 30]}
    pd.DataFrame(inferred).to_csv(found / "tau.csv", index=False)
    taus = np.logspace(-2, 9, 45)
    curve = pd.DataFrame({"group": "all", "tau": taus, "evidence": -(np.log(taus / 30) ** 2)})
    curve.to_csv(found / "evidence.csv", index=False)
    assert report("s")[0] == 0
    folders = [p.parent for p in (tmp_path / "report").rglob("variance.csv") if "party" in p.read_text()]
    (folder,) = folders
    table = pd.read_csv(folder / "variance.csv").set_index("level")
    assert table.loc["task", ["tau", "sigma", "units", "share"]].tolist() == [100, 0.1, 3, 0.04]
    assert table.loc["task", "gain_share"] == pytest.approx(0.25)
    assert table.loc["task", ["inferred_lower_tau", "inferred_tau"]].tolist() == [2, 30]
    assert table.loc["party", ["tau", "sigma", "units"]].tolist() == [25, 0.2, 2]
    assert table.loc["party", "worth"] == pytest.approx((0.04 * 100 + 0.01 * 50) / 150)  # of both seeds, by token
    assert table.loc["party", "spread"] == pytest.approx(math.sqrt(np.var([0.04, 0.01], ddof=1) - 0.001**2))
    assert math.isnan(table.loc["party", "spread_low"])  # of two units
    assert math.isnan(table.loc["sex", "tau"])  # no level of the runs
    assert (folder / "figure11.png").is_file()
    page = (tmp_path / "report/index.html").read_text()
    assert "How much tasks differ" in page
    assert "2 to 30" in page
