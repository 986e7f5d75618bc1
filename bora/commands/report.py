"""The command `bora report DIR…`: one or more sweep folders to tables, figures and a page, or to one archive."""

import argparse
import math
import sys
from pathlib import Path

from bora.commands.exits import cli_errors
from bora.errors import UserError

NEEDS = "bora report needs its extra: pip install 'bora[report]'"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bora report",
        description="Tables, figures and an HTML page from the runs in one or more folders (sweeps, or single runs).",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="a sweep's or a run's folder, or an archive of runs (--archive)",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("report"), help="folder to write to (report)")
    parser.add_argument(
        "-c", "--color-by", metavar="COLUMN", help="column of the corpus's table that colours the map of tasks"
    )
    parser.add_argument(
        "--wandb",
        choices=("auto", "off"),
        default="auto",
        help="log the report to Weights & Biases: auto, if the runs were (auto); off",
    )
    parser.add_argument(
        "--archive",
        type=Path,
        metavar="FILE",
        help="instead of a report, write the runs to this one file (runs.csv.gz): all settings and results, a row for "
        "each task of each run; `bora report FILE` gives the same report as the folders",
    )
    return parser


def archive(folders: list[Path], file: Path) -> None:
    """Read the runs and write them to an archive.

    Raises:
        UserError: no folder, or no finished run.
    """
    from bora.lib.files import make_output_folder
    from bora.report.series import read_runs, to_records
    from bora.runs.archive import write_archive

    runs, problems = read_runs(folders)
    make_output_folder(file.parent)
    write_archive(file, to_records(runs, file))
    for line in problems:
        print(f"bora: {line}", file=sys.stderr)
    print(f"{len(runs)} runs: {file.resolve()}")


def build(folders: list[Path], output: Path, color_by: str | None, to_wandb: bool) -> None:
    """Read the runs and write the report.

    Raises:
        UserError: no folder, no finished run, or an extra that is not installed.
    """
    try:
        from bora.report.page import build_section, page
    except ModuleNotFoundError as error:
        raise UserError(f"{NEEDS} (there is no {error.name})") from error
    from bora.lib.files import make_output_folder, write_text_atomically
    from bora.report.evidence import Evidence
    from bora.report.series import read_runs, series_of
    from bora.report.task_map import build_task_map

    runs, problems = read_runs(folders)
    make_output_folder(output)
    all_series, left_out = series_of(runs)
    problems += left_out
    sections = []
    for series in all_series:
        tau, projection = Evidence(series).best_middle_tau, None
        if tau is not None and not math.isinf(tau):
            run = series.at(tau)[0]
            try:
                projection = build_task_map(run)
            except UserError as error:
                problems.append(f"no figure 6 for {series.label}: {error}")
            if projection is not None and color_by is not None:
                try:
                    projection = build_task_map(run, color_by)
                except UserError as error:
                    problems.append(f"figure 6 for {series.label} has no colours: {error}")
        sections.append(build_section(series, projection))
    for section in sections:
        section.write(output if len(sections) == 1 else output / section.slug)
    write_text_atomically(output / "index.html", page(sections, problems, len(runs)))
    if to_wandb:
        from bora.report.wandb import log_view

        log_view(sections, runs, output)
    for section in sections:
        print(f"\n{section.label}\n\n{section.table1.markdown()}")
        for claim in section.claims:
            print(f"{claim.verdict}: {claim.claim} ({claim.numbers})")
    for line in problems:
        print(f"bora: {line}", file=sys.stderr)
    print(f"\nreport: {(output / 'index.html').resolve()}")


def main() -> None:
    """Run the command line."""
    arguments = parser().parse_args()
    with cli_errors():
        if arguments.archive is not None:
            archive(arguments.folders, arguments.archive)
            return
        build(arguments.folders, arguments.output, arguments.color_by, arguments.wandb == "auto")


if __name__ == "__main__":
    main()
