"""The exception for input that a user can fix, and helpers for errors of one line."""

import math
import traceback
from numbers import Integral, Real


class UserError(Exception):
    """Bad input: a value, file, column or model that the user named and that cannot be used.

    The message is one line that says what is wrong, where, and what to do. The command line
    prints it on standard error and exits with code 2.
    """


def require_positive(**values: object) -> None:
    """Raise a UserError for settings that are not finite numbers above 0."""
    for name, value in values.items():
        if not isinstance(value, Real) or not 0 < float(value) < math.inf:
            raise UserError(f"{name}={value!r}: give a number above 0")


def require_count(**values: object) -> None:
    """Raise a UserError for settings that are not whole numbers above 0."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
            raise UserError(f"{name}={value!r}: give a whole number, 1 or more")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: str) -> str:
    """Escape control and other unprintable characters."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def raised_in(error: Exception) -> str:
    """Return the name of the module that raised the error."""
    module = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
    return module
