"""The command `bora report DIR…`: make tables, figures and a page, or one archive, from one or more sweep folders."""

import argparse
import os
import sys
from pathlib import Path

from bora.commands.exits import cli_errors
from bora.errors import UserError
from bora.lib.files import user_path


def parser() -> argparse.ArgumentParser:
    description = "Make tables, figures and an HTML page from the runs in one or more folders (sweeps, or single runs)."
    parser = argparse.ArgumentParser(prog="bora report", description=description)
    add = parser.add_argument
    add("folders", nargs="+", type=user_path, metavar="DIR", help="a sweep's or a run's folder, or an archive")
    output = "folder to write to (report, in DIR or in the common folder of several)"
    add("-o", "--output", type=user_path, metavar="FOLDER", help=output)
    add("-c", "--color-by", metavar="COLUMN", help="colour figure 6 by this column of the corpus's table")
    wandb = "log the report to Weights & Biases: auto, if the runs were (auto); off"
    add("--wandb", choices=("auto", "off"), default="auto", help=wandb)
    one = (
        "write settings and results of all runs to one file, runs.csv.gz, which bora report reads, instead of a report"
    )
    add("--archive", type=user_path, metavar="FILE", help=one)
    check = "first check each run's files against its SHA256SUMS; list those changed or missing, and exit with code 2"
    add("--verify", action="store_true", help=check)
    return parser


def report(folders: list[Path], output: Path, color_by: str | None, to_wandb: bool) -> None:
    """Write the report, and print its main table and claims."""
    from bora.report.write import write

    sections, runs, problems = write(folders, output, color_by)
    if to_wandb:
        from bora.report.wandb import log_view

        log_view(sections, runs, output)
    for section in sections:
        print(f"\n{section.label}\n\n{section.table1.markdown()}")
        if section.learned is not None:
            print(section.learned.markdown())
        for claim in section.claims:
            print(f"{claim.claim}: {claim.numbers}: {claim.verdict}")
    _print_problems(problems)
    print(f"\nreport: {(output / 'index.html').resolve()}")


def default_output(folders: list[Path]) -> Path:
    """Choose a report's folder: `report` in the folder that it is about, or in the common folder of several."""
    tops = [folder.resolve() for folder in folders]
    common = Path(os.path.commonpath([top.parent if top.is_file() else top for top in tops]))
    return Path(os.path.relpath(common)) / "report"


def archive(folders: list[Path], file: Path) -> None:
    """Read the runs and write them to an archive."""
    from bora.lib.files import make_output_folder
    from bora.report.series import read_runs
    from bora.runs.archive import write_archive

    runs, problems = read_runs(folders)
    make_output_folder(file.parent)
    write_archive(file, runs)
    _print_problems(problems)
    print(f"{len(runs)} runs: {file.resolve()}")


def verify(folders: list[Path]) -> None:
    """Raise a UserError with a line for each file of the finished runs that is missing or was changed."""
    from bora.report.series import changed_files

    if changed := list(changed_files(folders)):
        raise UserError("\n".join(changed))


def _print_problems(problems: list[str]) -> None:
    for line in problems:
        print(f"bora: {line}", file=sys.stderr)


def main() -> None:
    arguments = parser().parse_args()
    with cli_errors():
        if arguments.verify:
            verify(arguments.folders)
        if arguments.archive is not None:
            archive(arguments.folders, arguments.archive)
        else:
            output = arguments.output or default_output(arguments.folders)
            report(arguments.folders, output, arguments.color_by, arguments.wandb == "auto")
