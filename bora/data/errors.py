"""Report a reader's bad input under the names that the caller gives its arguments.

A reader knows its arguments (path, task, text, date), not what they are called on the command line.
"""

import lzma
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bora.errors import UserError, first_line

# The settings of a run's config, by the readers' arguments.
ARGUMENTS = ("path", "task", "text", "date", "messages", "prompt", "levels", "split_name", "modules")
SETTINGS = {name: f"data.{name}=" for name in ARGUMENTS}
# What libraries raise at a file that is not what its ending says. Arrow's and json's parsing errors are ValueErrors;
# zipfile raises RuntimeError at an encrypted member, json RecursionError at a thousand open brackets.
UNREADABLE = (ValueError, OSError, EOFError, RuntimeError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)


class ReadError(UserError):
    """An argument of a reader, other than its path, that cannot be used.

    Args:
        argument: its name.
        value: as the user gave it.
        problem: what is wrong, and what to do.
    """

    def __init__(self, argument: str, value: object, problem: str):
        super().__init__(f"{value}: {problem}")
        self.argument = argument


@contextmanager
def input_errors(path: object, names: Mapping[str, str] = SETTINGS) -> Iterator[None]:
    """Begin the message of any error within by the user's setting at fault: the path, unless a ReadError says another.

    Args:
        path: what is read; None where the user named none.
        names: by argument, up to its value: {"text": "data.text="} or {"text": "--text "}.

    Raises:
        UserError: also for what libraries raise at a damaged file.
    """
    where = "" if path is None else f"{names.get('path', '')}{path}: "
    try:
        yield
    except ReadError as error:
        raise UserError(f"{names[error.argument]}{error}") from error
    except UserError as error:
        raise UserError(f"{where}{error}") from error
    except UNREADABLE as error:
        advice = "it is damaged, not of the type that its ending says, or you may not read it"
        raise UserError(f"{where}{first_line(error)}; {advice}") from error
