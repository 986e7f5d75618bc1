"""Names in any script are drawn with fonts that have their characters."""

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from bora.report.drawing import drawing_style
from bora.report.fonts import OWN, find_fonts

RARE = "\U00016811"  # Bamum, for which few machines have a font


def install(folder, monkeypatch, family: str, characters: str) -> None:
    """Install a font of empty squares in matplotlib."""
    pen = TTGlyphPen(None)
    for move, point in ((pen.moveTo, (0, 0)), (pen.lineTo, (0, 700)), (pen.lineTo, (700, 700)), (pen.lineTo, (700, 0))):
        move(point)
    pen.closePath()
    names = [".notdef", *(f"glyph{i}" for i in range(len(characters)))]
    font = FontBuilder(1000)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(c): name for c, name in zip(characters, names[1:], strict=True)})
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2(usWeightClass=400)
    font.setupPost()
    font.save(folder / f"{family}.ttf")
    monkeypatch.setattr(fontManager, "ttflist", fontManager.ttflist.copy())
    fontManager.addfont(str(folder / f"{family}.ttf"))


def draw(text: str) -> None:
    figure = Figure()
    figure.suptitle(text)
    figure.draw_without_rendering()


@pytest.mark.filterwarnings("error")
def test_a_name_is_drawn_with_a_font_that_has_its_characters(tmp_path, monkeypatch):
    assert find_fonts(["Søren", "Ελένη", "Öz 5"]) == ([OWN], [])
    assert find_fonts([RARE]) == ([OWN], [RARE])
    with drawing_style([OWN]):
        draw(RARE)  # as boxes, which the report warns of
    install(tmp_path, monkeypatch, "Squares", RARE)
    families, missing = find_fonts([f"a {RARE}", "\U00016812"])
    assert (families, missing) == ([OWN, "Squares"], ["\U00016812"])
    with rc_context({"font.family": families}):
        draw(RARE)
