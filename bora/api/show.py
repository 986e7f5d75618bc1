"""What a notebook shows: tables, and answers side by side."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from bora.use.generate import Answer
from bora.use.score import MODELS

MAX_ROWS = 30  # rows of a table in a notebook
BOX = "flex: 1 1 14em; max-width: 32em; border: 1px solid #8888; border-radius: 4px; padding: 0.4em 0.8em"
TEXT = "white-space: pre-wrap; overflow-wrap: anywhere; font-family: monospace; font-size: 0.9em; margin-top: 0.3em"
PAGE = "width: 100%; height: 40em; border: 1px solid #8888"


def table(title: str, rows: pd.DataFrame) -> str:
    """Write an HTML table below its title, with empty cells for NaN."""
    shown = rows.to_html(index=False, border=0, max_rows=MAX_ROWS, na_rep="", float_format=lambda x: f"{x:,.2f}")
    return f"<p>{escape(title)}</p>\n{shown}"


class Scores(pd.DataFrame):
    """Perplexities, one row for each task.

    Attributes:
        overall: those of all tasks together, by token; see `bora.use.score.perplexities`.
    """

    _metadata: ClassVar = ["overall"]
    overall: dict[str, float]

    def _repr_html_(self) -> str:
        own, mean, base = (self.overall[column] for column in MODELS)
        title = (
            f"all tasks, by token: perplexity {own:.2f} with each task's θ, {mean:.2f} with Θ, {base:.2f} with neither"
        )
        return table(title, pd.DataFrame(self))


class Voices(pd.DataFrame):
    """Answers side by side: a row for each prompt, or prompt and sequence; a column for each speaker."""

    @classmethod
    def of(cls, answers: Sequence[Answer], prompts: Sequence[str], n: int) -> "Voices":
        """Arrange the answers of `bora.use.generate.generate`, n by each speaker to each prompt."""
        texts = np.array([a.text for a in answers], dtype=object).reshape(len(prompts), -1, n)
        speakers = [str(a.speaker) for a in answers[: texts[0].size : n]]
        index = pd.MultiIndex.from_product([prompts, range(n)], names=["prompt", "sequence"])
        cells = texts.swapaxes(1, 2).reshape(-1, len(speakers))
        return cls(cells, index.droplevel("sequence") if n == 1 else index, speakers)

    def _boxes(self) -> list[tuple[str, list[tuple[str, str]]]]:
        prompts = self.index.get_level_values("prompt")
        rows = zip(prompts, self.to_numpy().tolist(), strict=True)
        return [(prompt, list(zip(map(str, self.columns), row, strict=True))) for prompt, row in rows]

    def __repr__(self) -> str:
        return "\n".join(f"--- {name}\n{prompt}{text}\n" for prompt, answers in self._boxes() for name, text in answers)

    def _repr_html_(self) -> str:
        lines = []
        for prompt, answers in self._boxes():
            boxes = "".join(
                f'<div style="{BOX}"><b>{escape(name)}</b>'
                f'<div style="{TEXT}"><span style="opacity: 0.55">{escape(prompt)}</span>{escape(text)}</div></div>'
                for name, text in answers
            )
            lines.append(f'<div style="display: flex; flex-wrap: wrap; gap: 0.6em; margin: 0.6em 0">{boxes}</div>')
        return "\n".join(lines)


class Report:
    """A written report.

    Attributes:
        path: its page, index.html; tables and figures are in the same folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Report({str(self.path)!r})"

    def _repr_html_(self) -> str:
        page = escape(self.path.read_text("utf-8"))
        return f'<iframe style="{PAGE}" srcdoc="{page}"></iframe>'
