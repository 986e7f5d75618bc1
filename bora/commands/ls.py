"""The command `bora ls FOLDER`: list the runs below a folder, and the τ that validation chooses."""

import argparse
import sys
from pathlib import Path

from bora.commands.exits import cli_errors
from bora.commands.tables import print_runs, print_sweep
from bora.errors import UserError
from bora.lib.files import user_path
from bora.runs.directory import OVERRIDES, SUMMARY
from bora.runs.sweep import failed_runs, finished_runs

MAX_VARIED = 4  # settings that have a column; runs that differ in more are not one sweep


def parser() -> argparse.ArgumentParser:
    description = "List the runs at or below a folder: τ, seed, perplexities, and the best τ."
    parser = argparse.ArgumentParser(prog="bora ls", description=description)
    parser.add_argument(
        "folder", type=user_path, nargs="?", default=Path(), metavar="FOLDER", help="where to look (here)"
    )
    return parser


def ls(folder: Path) -> None:
    """Print the finished runs, then those that are unfinished or failed."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    runs, by, problems = finished_runs(folder)
    failures = failed_runs(folder)
    failed = {Path(file).parent.as_posix() for file in failures}
    begun = (file.parent.parent for file in sorted(folder.glob(f"**/{OVERRIDES}")))
    places = (run.relative_to(folder).as_posix() for run in begun if not (run / SUMMARY).is_file())
    problems += [f"{place}: unfinished" for place in places if place not in failed]
    problems += [f"{Path(file).parent}: failed: {failure['error']}" for file, failure in failures.items()]
    if not len(runs) and not problems:
        raise UserError(f"{folder}: there is no run in this folder")
    comparable = len(by) <= 1 + MAX_VARIED
    if len(runs):
        print_runs(runs, by if comparable else by[:1])
    if len(runs) > 1 and comparable:
        print_sweep(runs, by)
    for line in problems:
        print(f"bora: {line}", file=sys.stderr)


def main() -> None:
    arguments = parser().parse_args()
    with cli_errors():
        ls(arguments.folder)
