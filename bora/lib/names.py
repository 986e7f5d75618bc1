"""Make names and texts safe in file systems, Markdown and LaTeX."""

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

MAX_NAME_CHARS = 64  # some file systems stop at 143 bytes
# Letters that Unicode does not decompose into a plain letter and a mark → their plain spelling.
_LETTERS = str.maketrans(
    dict(zip("øØðÐłŁđĐı", "oOdDlLdDi", strict=True))
    | {"æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ß": "ss", "þ": "th", "Þ": "Th"}
)
# The brackets of an interval, such as [1.2, 3.4], are not escaped: they make no link.
_MARKUP = re.compile(r"([!#$&*<>\\^_`{|}~]|\[(?![\d+−-])|\](?=[(\[:]))")
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {c: "\\" + c for c in "&%$#_{}"}
# At the start of a table's row these would be read as arguments of the line break before it.
_LATEX |= {c: f"{{{c}}}" for c in "[]*"}
_LATEX |= {"τ": r"$\tau$", "∞": r"$\infty$", "Θ": r"$\Theta$", "−": "$-$", "±": r"$\pm$", "×": r"$\times$"}
_LATEX |= {c: f"$^{n}$" for n, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
_LATEX |= {c: f"$_{n}$" for n, c in enumerate("₀₁₂₃₄₅₆₇₈₉")}
_LATEX |= {"␣": r"\textvisiblespace{}", "↵": r"$\hookleftarrow$", "⇥": r"$\mapsto$"}


def safe_names(tasks: Iterable[str], reserved: Iterable[str] = ()) -> dict[str, str]:
    """Map each task to a safe file name of ASCII letters, digits, dots, hyphens and underscores.

    Names differ in more than upper and lower case, and none is `reserved`. Among tasks that would share a name, those
    that it does not spell exactly get a hash as suffix, so that a name does not depend on the tasks' order.
    """
    plain = {task: _plain(task) for task in tasks}
    sharers = Counter(name.lower() for name in [*reserved, *plain.values()])
    names = {task: name for task, name in plain.items() if sharers[name.lower()] == 1}
    taken = {name.lower() for name in [*reserved, *names.values()]}
    for task in sorted(plain.keys() - names.keys(), key=lambda task: (task != plain[task], task)):
        name, digest = plain[task], hashlib.sha256(task.encode()).hexdigest()
        lengths = iter(range(6, len(digest)))
        while name.lower() in taken:
            name = f"{plain[task]}-{digest[: next(lengths)]}"
        taken.add(name.lower())
        names[task] = name
    return {task: names[task] for task in plain}


def _plain(task: str) -> str:
    """Spell a name in safe characters; "task" if none is left."""
    marked = unicodedata.normalize("NFKD", task.translate(_LETTERS))
    letters = "".join(c for c in marked if not unicodedata.combining(c))
    # A file name must not be hidden, look like a command's option, or lead out of its folder.
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", letters).strip("-._")[:MAX_NAME_CHARS].rstrip("-._")
    return name or "task"


def one_line(text: str) -> str:
    """Replace line breaks and other control characters by single spaces."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())


def markdown(text: str) -> str:
    """Escape a text as one line of Markdown. Do not begin a line with it: + and = are markup there."""
    return _MARKUP.sub(r"\\\1", one_line(text))


def latex(text: str) -> str:
    """Write a text as one line of LaTeX that shows it literally, including bora's Greek letters and superscripts."""
    return "".join(_LATEX.get(c, c) for c in one_line(text))


def format_tau(tau: float | str) -> str:
    """Format τ for people: 0, 2.5, 100, 10⁴, ∞; `learn` is unchanged."""
    if isinstance(tau, str):
        return tau
    if math.isinf(tau):
        return "∞"
    exponent = math.log10(tau) if tau > 0 else 0.0
    if exponent >= 4 and exponent == int(exponent):
        return "10" + str(int(exponent)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{tau:g}"
