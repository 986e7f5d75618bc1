"""Say what is wrong with a reader's input, in the words of whoever called it.

A reader knows its arguments (path, task, text, date), not what they are called on the command line: it raises a
ReadError that says which argument is at fault. The caller gives the names of its settings with `setting_names`.
"""

import lzma
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bora.errors import UserError, first_line

# The settings of a run's config, by the readers' arguments.
SETTINGS = {name: f"data.{name}=" for name in ("path", "task", "text", "date", "split_name", "modules")}
# What libraries raise at a file that is not what its ending says. Arrow's and json's parsing errors are ValueErrors;
# zipfile raises RuntimeError at an encrypted member, json RecursionError at a thousand open brackets.
UNREADABLE = (ValueError, OSError, EOFError, RuntimeError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)


class ReadError(UserError):
    """An argument of a reader that cannot be used.

    Args:
        argument: its name; path where the contents of the file are at fault.
        value: as the user gave it.
        problem: what is wrong, where, and what to do.
    """

    def __init__(self, argument: str, value: object, problem: str):
        super().__init__(f"{value}: {problem}")
        self.argument = argument


@contextmanager
def setting_names(names: Mapping[str, str]) -> Iterator[None]:
    """Begin a reader's message with the name of the user's setting.

    Args:
        names: by argument, up to its value: {"text": "data.text="} or {"text": "--text "}.
    """
    try:
        yield
    except ReadError as error:
        raise UserError(f"{names.get(error.argument, '')}{error}") from error


@contextmanager
def in_file(path: object) -> Iterator[None]:
    """Begin a message about a file's contents with the file's name, whoever raises it.

    Raises:
        ReadError: for any UserError and for what libraries raise at a damaged file.
    """
    try:
        yield
    except ReadError:
        raise
    except UserError as error:
        raise ReadError("path", path, str(error)) from error
    except UNREADABLE as error:
        advice = "the file is damaged, or not what its ending says"
        if isinstance(error, PermissionError):
            advice = "give your user the right to read it"
        raise ReadError("path", path, f"{first_line(error)}; {advice}") from error
