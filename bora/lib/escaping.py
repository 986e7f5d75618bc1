"""Escape names and texts for a page, a card or a paper."""

import re

# The brackets of an interval, such as [1.2, 3.4], stay: they make no link.
_MARKUP = re.compile(r"([!#$&*<>\\^_`{|}~]|\[(?![\d−-])|\](?=[(\[:]))")
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {c: "\\" + c for c in "&%$#_{}"}
# At the start of a table's row these would be arguments of the line break before it.
_LATEX |= {c: f"{{{c}}}" for c in "[]*"}
_LATEX |= {"τ": r"$\tau$", "∞": r"$\infty$", "Θ": r"$\Theta$", "−": "$-$", "±": r"$\pm$", "×": r"$\times$"}
_LATEX |= {c: f"$^{n}$" for n, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}


def one_line(text: str) -> str:
    """Replace line breaks and other control characters by single spaces."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())


def markdown(text: str) -> str:
    """Write any text as one line of Markdown that shows it as it is; not to begin a line, where + and = are markup."""
    return _MARKUP.sub(r"\\\1", one_line(text))


def latex(text: str) -> str:
    """Write any text as one line of LaTeX that shows it as it is, our Greek letters and superscripts included."""
    return "".join(_LATEX.get(c, c) for c in one_line(text))
