"""Leave what Python writes into named tuples, such as "Alias for field number 0", out of the reference."""

from collections import namedtuple

from sphinx.application import Sphinx

FIELD = type(namedtuple("Pair", "left").left)
MADE = "Create new instance of "


def skip_fields(app: Sphinx, kind: str, name: str, member: object, skip: bool, options) -> bool | None:
    """Skip fields: the class's docstring describes them."""
    return True if isinstance(member, FIELD) else None


def drop_constructor(app: Sphinx, kind: str, name: str, member: object, options, lines: list[str]) -> None:
    """Remove the constructor's line."""
    lines[:] = [line for line in lines if not line.startswith(MADE)]


def setup(app: Sphinx) -> dict:
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-docstring", drop_constructor)
    return {"parallel_read_safe": True}
