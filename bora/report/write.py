"""Write a report on folders of runs to a folder."""

import os
from pathlib import Path

from bora.errors import UserError
from bora.lib.files import make_output_folder, write_text_atomically
from bora.report.series import read_runs


def write(folders: list[Path], output: Path, color_by: str | None) -> tuple[list, list, list[str]]:
    """Read the runs and write the report.

    Returns:
        Its sections, the runs, and a line for each run that is not in it.

    Raises:
        UserError: a folder does not exist, there is no finished run, or a package is not installed.
    """
    try:
        from bora.report.page import write_report
    except ModuleNotFoundError as error:
        raise UserError(
            f"bora report needs a package that is missing ({error.name}): pip install matplotlib tabulate"
        ) from error
    runs, problems = read_runs(folders)
    _claim_output(output, folders)
    return write_report(runs, problems, output, color_by), runs, problems


def _claim_output(output: Path, folders: list[Path]) -> None:
    """Make a report's folder, and list its runs' folders in runs.txt there; refuse one with a page about other runs."""
    make_output_folder(output)
    about, note = "".join(sorted(f"{os.path.relpath(folder, output)}\n" for folder in folders)), output / "runs.txt"
    if (output / "index.html").exists() and not (note.is_file() and note.read_text("utf-8") == about):
        raise UserError(f"{output} holds a page about other runs; give another folder with -o")
    write_text_atomically(note, about)
