"""Find fonts for names in any script: matplotlib's own has Latin, Greek, Cyrillic and a few others."""

from collections.abc import Iterable

import matplotlib as mpl
from matplotlib.font_manager import findfont, fontManager, get_font

OWN = "DejaVu Sans"
REGULAR = 400  # weight


def find_fonts(names: Iterable[object]) -> tuple[list[str], list[str]]:
    """List families of fonts that together have the names' characters: matplotlib's own, then this machine's as needed.

    Returns:
        The families, for matplotlib's font.family, and the characters that no font has.
    """
    missing = {c for name in names for c in str(name) if c.isprintable()} - _characters(findfont(OWN))
    families, found = [OWN], {}
    for font in fontManager.ttflist if missing else ():
        regular = font.style == "normal" and font.weight in (REGULAR, "normal", "regular")
        # One of matplotlib's other fonts has a box for every character.
        if regular and not font.fname.startswith(mpl.get_data_path()) and font.name not in found:
            found[font.name] = _characters(font.fname)
    while missing and found:
        best = max(found, key=lambda family: (len(found[family] & missing), "Serif" not in family))
        if missing.isdisjoint(found[best]):
            break
        families.append(best)
        missing -= found.pop(best)
    return families, sorted(missing)


def _characters(file: str) -> set[str]:
    return set(map(chr, get_font(file).get_charmap()))
