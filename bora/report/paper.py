"""The paper's own numbers: Tables 1 and 2 of Eide & Frigessi (2024), OPT-350m on Talk of Norway.

As in the published code, these are perplexities of the best validation epoch, with padding scored.
"""

import pandas as pd

# Learning rate, τ, perplexity.
_TABLE_1 = [
    (1e-4, 0, 16.80),
    (1e-5, 1, 16.59),
    (1e-4, 10, 12.85),
    (1e-3, 100, 12.82),
    (1e-2, 1000, 13.26),
    (1e-1, 10000, 13.91),
]

# Task; then its perplexity at τ = 0, 1, 10, 100, 1000, 10000.
_TABLE_2 = """
    abid q raja             15.56 15.20 12.57 11.60 11.91 12.41
    akhtar chaudhry         14.78 14.37 12.01 11.43 11.66 12.06
    aksel hagen             15.88 15.30 12.68 11.84 12.26 12.61
    alf egil holmelid       16.96 16.86 13.97 12.66 13.35 14.51
    anders b werp           16.86 16.35 13.04 11.87 12.54 13.00
    andré n skjelstad       15.53 15.23 12.59 11.58 11.98 12.41
    andré oktay dahl        16.01 15.85 13.50 12.55 12.88 13.48
    anette trettebergstuen  15.98 15.73 13.43 12.57 12.90 13.28
    anita apelthun sæle     25.44 25.42 21.04 19.21 20.16 21.37
    anne tingelstad wøien   16.41 16.23 13.60 12.43 12.90 13.54
    anniken huitfeldt       14.44 14.39 12.33 11.66 12.05 12.53
    ansgar gabrielsen       16.10 16.16 14.07 13.23 13.68 14.19
    arild grande            16.65 16.29 13.31 12.21 12.56 13.08
    arne lyngstad           15.57 15.28 12.12 11.25 11.66 12.08
    arve kambe              17.78 17.40 14.24 13.11 13.43 13.79
    asmund kristoffersen    17.15 16.75 13.63 12.61 13.03 13.61
    audun lysbakken         15.21 15.25 13.22 12.48 12.67 13.13
    bendiks h arnesen       14.34 14.23 12.04 11.11 11.42 11.97
    bente thorsen           16.35 15.88 12.87 11.60 12.28 13.06
    bjørg tørresdal         16.02 15.65 12.78 11.58 11.92 12.46
    bjørn hernæs            16.33 15.94 13.68 12.76 13.08 13.58
    bjørn jacobsen          22.28 22.87 19.54 18.52 19.05 20.53
    bjørn lødemel           22.91 24.09 19.65 18.08 19.39 21.08
    bjørn tore godal        16.57 16.30 14.55 14.02 14.22 14.48
    borghild tenden         14.42 14.84 12.12 11.10 11.68 12.41
"""

TAUS = [float(tau) for _, tau, _ in _TABLE_1]


def table1() -> pd.DataFrame:
    """Return Table 1: columns learning_rate, tau, perplexity."""
    return pd.DataFrame(_TABLE_1, columns=["learning_rate", "tau", "perplexity"])


def table2() -> pd.DataFrame:
    """Return Table 2: perplexity, task × τ."""
    rows = [line.rsplit(maxsplit=6) for line in _TABLE_2.strip().splitlines()]
    values = {name.strip(): [float(x) for x in numbers] for name, *numbers in rows}
    return pd.DataFrame.from_dict(values, orient="index", columns=TAUS)
