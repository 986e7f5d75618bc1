"""Tabulate how each task speaks: its most characteristic tokens and how it continues a prompt, by `bora voices`."""

from pathlib import Path

import pandas as pd

from bora.lib.names import format_tau, one_line
from bora.report.evidence import Evidence
from bora.report.tables import ReportTable, number
from bora.runs.directory import SUMMARY
from bora.runs.values import readable

FOLDER, TOKENS, CONTINUATIONS = "voices", "tokens.csv", "continuations.csv"
BELOW = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
N_BEST, MIN_COUNT, MIN_DOCUMENTS = 8, 3, 2  # tokens shown for each task, and how often they must occur


def arrange_voices(tokens: pd.DataFrame, continuations: pd.DataFrame) -> pd.DataFrame:
    """Arrange one row for each speaker, Θ first, then the tasks by their gain: task, gain, tokens, says.

    Each token has its contribution, in thousandths of a nat, as a subscript.
    """
    often = (tokens["count"] >= MIN_COUNT) & (tokens["documents"] >= MIN_DOCUMENTS) & (tokens["contribution"] > 0)
    best = tokens[often].groupby("task", sort=False).head(N_BEST)
    shown = best["token"] + best["contribution"].map(lambda x: f"{1000 * x:.0f}".translate(BELOW)).astype(str)
    said = continuations.set_index("task")["text"].map(lambda text: one_line(text.replace("\n", " ↵ ")))
    gain = tokens.groupby("task")["contribution"].sum().reindex(said.index)
    table = pd.DataFrame({"gain": gain, "tokens": shown.groupby(best["task"]).agg("  ".join), "says": said}, said.index)
    table = table.fillna({"tokens": ""}).sort_values("gain", ascending=False, na_position="first", kind="stable")
    return table.rename_axis("task").reset_index()


def voices_table(evidence: Evidence) -> ReportTable | None:
    """Tabulate the voices of the first run at the best middle τ; None if `bora voices` has not been run on it."""
    tau = evidence.best_middle_tau
    folder = Path() if tau is None else evidence.series.at(tau)[0].folder / FOLDER
    if tau is None or not (folder / SUMMARY).is_file():
        return None
    with readable(folder / TOKENS) as file:
        tokens = pd.read_csv(file, dtype={"task": str, "token": str}, keep_default_na=False)
    with readable(folder / CONTINUATIONS) as file:
        continuations = pd.read_csv(file, dtype=str, keep_default_na=False)
    data, prompt = arrange_voices(tokens, continuations), one_line(continuations["prompt"].iloc[0])
    cells = data.assign(gain=data["gain"].map(lambda gain: number(gain, "+.3f").replace("-", "−")))
    caption = (
        f"How each task speaks at τ = {format_tau(tau)}, and how it continues “{prompt}”. Gain: how much likelier its "
        "validation documents are under its own θ than under Θ, in nats a token. Tokens: the most characteristic, which "
        f"contribute most to the gain, among those that occur at least {MIN_COUNT} times, in at least {MIN_DOCUMENTS} "
        "documents; the subscript is the contribution in thousandths of a nat. ␣ is a space, ↵ the end of a line. A task "
        "always says the likeliest token, with repetitions made less likely."
    )
    return ReportTable("voices", data, cells, cells == "", caption)
