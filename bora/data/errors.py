"""Report a reader's bad input with the caller's names for its arguments.

A reader knows its arguments (path, task, text, date), but not what they are called on the command line.
"""

import lzma
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bora.errors import UserError, first_line

# A reader's argument → its setting in a run's config.
ARGUMENTS = ("path", "task", "text", "date", "messages", "prompt", "levels", "split_name", "modules")
SETTINGS = {name: f"data.{name}=" for name in ARGUMENTS}
# What libraries raise for a file that is not what its ending says. Arrow's and json's parsing errors are ValueErrors;
# zipfile raises RuntimeError for an encrypted member, json RecursionError for a thousand open brackets.
UNREADABLE = (ValueError, OSError, EOFError, RuntimeError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)


class ReadError(UserError):
    """An argument of a reader, other than its path, that cannot be used.

    Args:
        argument: the argument's name.
        value: the value, as the user gave it.
        problem: what is wrong, and what to do.
    """

    def __init__(self, argument: str, value: object, problem: str):
        super().__init__(f"{value}: {problem}")
        self.argument = argument


@contextmanager
def input_errors(path: object, names: Mapping[str, str] = SETTINGS) -> Iterator[None]:
    """Prefix errors raised inside the context with the setting at fault: the path, unless a ReadError names another.

    Args:
        path: what is read; None if the user named none.
        names: argument → the user's setting, up to its value: {"text": "data.text="} or {"text": "--text "}.

    Raises:
        UserError: also instead of what libraries raise for a damaged file.
    """
    where = "" if path is None else f"{names.get('path', '')}{path}: "
    try:
        yield
    except ReadError as error:
        raise UserError(f"{names[error.argument]}{error}") from error
    except UserError as error:
        raise UserError(f"{where}{error}") from error
    except UNREADABLE as error:
        advice = "it is damaged, not of the type that its ending says, or not readable by this user"
        raise UserError(f"{where}{first_line(error)}; {advice}") from error
