"""Tabulate how much tasks, and units of levels above, differ: what the prior allows, and what it is worth on test."""

import math
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from bora.lib.names import format_tau
from bora.report.evidence import Evidence
from bora.report.intervals import Interval, bootstrap, weighted_mean
from bora.report.tables import ReportTable
from bora.runs.archive import RunRecord
from bora.runs.directory import EVIDENCE, INFERRED, SHARES, UNITS, VARIANCE
from bora.runs.values import readable

MIN_UNITS_OF_SPREAD = 10  # with fewer, a standard deviation's bootstrap interval is far too narrow


def variance_table(evidence: Evidence) -> ReportTable | None:
    """Build the table of variances at the best of 0 < τ < ∞, a row for each level; None if the runs lack what it needs.

    The results of `bora variance` are added if the first of those runs has them in its folder.
    """
    tau = evidence.best_middle_tau
    if tau is None or any("effect" not in run.per_task for run in evidence.series.at(tau)):
        return None
    runs = evidence.series.at(tau)
    tasks = evidence.tasks()["test_tokens"].to_numpy(float)
    levels: dict[str, list[float]] = {}
    for run in runs:
        for level, of_level in run.summary.get("levels", {}).items():
            levels.setdefault(level, []).append(of_level)
    own = "own_effect" if all("own_effect" in run.per_task for run in runs) else "effect"
    effect, error = (evidence.by_task(tau, name).mean(axis=1) for name in (own, f"{own}_error"))
    rows = [_row("task", tau, effect, error, tasks)]
    units = [table for run in runs if (table := _read(run.folder / UNITS)) is not None]
    for level, taus in levels.items():
        if units:
            tables = [table[table["level"] == level].set_index("unit") for table in units]
            effect, error = (pd.concat([t[n] for t in tables], axis=1).mean(axis=1) for n in ("effect", "effect_error"))
            rows.append(_row(level, median(taus), effect, error, tables[0]["test_tokens"].to_numpy(float)))
    data = pd.DataFrame(rows)
    if own == "own_effect":
        together = weighted_mean(evidence.by_task(tau, "effect").mean(axis=1).to_numpy(float), tasks)
        data["gain_share"] = data["worth"] / together if together > 0 else math.nan
    data = _with_gradients(data, runs[0])
    if (inferred := read_inferred(runs[0])) is not None:
        data.loc[0, ["inferred_lower_tau", "inferred_tau"]] = inferred
    return ReportTable("variance", data, cells := _cells(data), cells == "", _caption(data, tau, own == "effect"))


def _read(file: Path) -> pd.DataFrame | None:
    """Read a run's table; None if the file is missing."""
    if not file.is_file():
        return None
    with readable(file):
        return pd.read_csv(file)


def read_inferred(run: RunRecord) -> tuple[float, float] | None:
    """Read the two ends of a run's τ for inference, for all parameters together; None if there is none."""
    found = _read(run.folder / VARIANCE / INFERRED)
    if found is None:
        return None
    low, high = found.loc[found["group"] == "all", ["lower_tau", "tau"]].to_numpy(float)[0]
    return float(low), float(high)


def evidence_profile(evidence: Evidence) -> tuple[pd.DataFrame, tuple[float, float]] | None:
    """Read the evidence by τ of the first run at the best middle τ: tau, evidence (nats); and τ for inference."""
    tau = evidence.best_middle_tau
    if tau is None:
        return None
    run = evidence.series.at(tau)[0]
    found, inferred = _read(run.folder / VARIANCE / EVIDENCE), read_inferred(run)
    return None if found is None or inferred is None else (found[found["group"] == "all"], inferred)


def spread(effects: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Estimate the standard deviation of true effects along the last axis: the observed variance minus the errors'."""
    within = np.nanmean(np.where(np.isnan(errors), np.nanmean(errors), errors) ** 2, axis=-1)
    return np.sqrt(np.clip(effects.var(axis=-1, ddof=1) - within, 0, None))


def _row(level: str, tau: float, effect: pd.Series, error: pd.Series, tokens: np.ndarray) -> dict[str, Any]:
    known = effect.notna().to_numpy()  # a unit without a test document has no measured effect
    effects, errors, tokens = effect.to_numpy(float)[known], error.to_numpy(float)[known], tokens[known]
    row: dict[str, Any] = {"level": level, "units": len(known), "tau": tau, "sigma": tau**-0.5}
    if len(effects) < 2 or np.isnan(errors).all():
        over_units = Interval(math.nan)
    elif len(effects) < MIN_UNITS_OF_SPREAD:
        over_units = Interval(float(spread(effects, errors)))
    else:
        over_units = bootstrap(spread, effects, errors)
    for name, found in (("worth", bootstrap(weighted_mean, effects, tokens)), ("spread", over_units)):
        row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return row


def _with_gradients(data: pd.DataFrame, run: RunRecord) -> pd.DataFrame:
    shares = _read(run.folder / VARIANCE / SHARES)
    if shares is None:
        return data
    shares = shares.rename(columns={"column": "level", "low": "share_low", "high": "share_high"})
    others = shares[~shares["level"].isin(data["level"])]  # columns that are not levels of the run
    return pd.concat([data.merge(shares.drop(columns="units"), on="level", how="left"), others], ignore_index=True)


def _cells(data: pd.DataFrame) -> pd.DataFrame:
    def intervals(name: str, spec: str) -> list[str]:
        values = data[[name, f"{name}_low", f"{name}_high"]].to_numpy(float)
        return ["" if math.isnan(value) else format(Interval(value, *ends), spec) for value, *ends in values]

    cells = pd.DataFrame({"level": data["level"], "units": data["units"].map("{:,}".format)})
    cells["τ"] = ["" if math.isnan(tau) else format_tau(tau) for tau in data["tau"]]
    cells["σ"] = ["" if math.isnan(s) else f"{s:.2g}" for s in data["sigma"]]
    cells["worth [95 %]"] = intervals("worth", "+.4f")
    if "gain_share" in data:
        cells["share of the gain"] = ["" if math.isnan(share) else f"{share:.0%}" for share in data["gain_share"]]
    cells["sd over units [95 %]"] = intervals("spread", ".4f")
    if "share" in data:
        cells["share of gradients [95 %]"] = intervals("share", ".1%")
    if "inferred_tau" in data:
        between = data[["inferred_lower_tau", "inferred_tau"]].to_numpy(float)
        words = ["" if math.isnan(high) else f"{low:.2g} to {high:.2g}" for low, high in between]
        cells["τ for inference"] = [text.replace("inf", "∞") for text in words]
    return cells


def _caption(data: pd.DataFrame, tau: float, against_mean: bool) -> str:
    tasks = " (for tasks: under Θ)" if against_mean else ""
    caption = (
        f"At τ = {format_tau(tau)}: σ = 1/√τ is the prior's standard deviation. A level's worth is "
        f"by how much the NLL of test documents is higher without its deviations{tasks}, in nats a token, with a 95 % "
        "bootstrap interval over its units. The standard deviation over units is corrected for sampling noise, and has "
        "an interval from ten units on."
    )
    if "gain_share" in data:
        caption += (
            " The share of the gain is relative to what all deviations together gain over Θ; levels overlap, so "
            "shares need not add up to 100 %."
        )
    if "share" in data:
        caption += " The share is of the variance of validation documents' gradients at Θ (bora variance)."
    if "inferred_tau" in data:
        caption += (
            " τ for inference has the highest evidence, with all of θ integrated out; its two values count too many and "
            "too few parameters as determined by the data. It is not the best τ for perplexity."
        )
    return caption
