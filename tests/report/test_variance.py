"""How much tasks and units differ: the table and the figure of variances."""

import math

import numpy as np
import pandas as pd
import pytest

from bora.report.variance import spread
from tests.report.runs import write_summary


def test_the_spread_of_effects_excludes_the_variance_of_their_errors():
    effects, errors = np.array([0.04, 0.01, 0.03]), np.array([0.001, 0.002, math.nan])
    assert spread(effects, errors) == pytest.approx(
        math.sqrt(np.var(effects, ddof=1) - (0.001**2 + 0.002**2 + 0.0015**2) / 3)
    )


@pytest.mark.figures
def test_variances_are_tabulated_with_the_results_of_bora_variance(sweep, report, tmp_path):
    for seed in (0, 1):
        run = sweep / f"tau=100,seed={seed}"
        write_summary(run, levels={"party": 25.0})
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
    (folder,) = [p.parent for p in (tmp_path / "report").rglob("variance.csv") if "party" in p.read_text()]
    table = pd.read_csv(folder / "variance.csv").set_index("level")
    assert table.loc["task", ["tau", "sigma", "units", "share"]].tolist() == [100, 0.1, 3, 0.04]
    assert table.loc["task", "gain_share"] == pytest.approx(0.25)
    assert table.loc["task", ["inferred_lower_tau", "inferred_tau"]].tolist() == [2, 30]
    assert table.loc["party", ["tau", "sigma", "units"]].tolist() == [25, 0.2, 2]
    assert table.loc["party", "worth"] == pytest.approx((0.04 * 100 + 0.01 * 50) / 150)  # mean of both seeds, by token
    assert table.loc["party", "spread"] == pytest.approx(math.sqrt(np.var([0.04, 0.01], ddof=1) - 0.001**2))
    assert math.isnan(table.loc["party", "spread_low"])  # too few units, two
    assert math.isnan(table.loc["sex", "tau"])  # not a level of the runs
    assert (folder / "figure11.png").is_file()
    page = (tmp_path / "report/index.html").read_text()
    assert "How much tasks differ" in page
    assert "2 to 30" in page
