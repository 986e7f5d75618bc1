"""CSV, read strictly and in bounded memory."""

import csv
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path

import pandas as pd
import pyarrow as pa

from bora.data.columns import columns_of, finish
from bora.data.streams import text_lines
from bora.errors import UserError
from bora.lib.cache import digest, kept

CHARACTERS_AT_A_TIME = 2**26  # of a CSV file's needed columns, before Arrow has them
LARGE = 2**26  # bytes of a CSV file whose needed columns are worth keeping
csv.field_size_limit(2**31 - 1)  # a cell may be long; the module's own bound is 128 KiB


def read_csv(
    file: Path,
    separator: str = ",",
    compression: str | None = None,
    task: str | None = None,
    text: str = "text",
    date: str | None = None,
    missing: str | None = None,
) -> pd.DataFrame:
    """`read` for CSV; a large file's columns are kept in the cache folder for the next start.

    Args:
        missing: a cell that stands for none; None if there is no such mark.
    """
    with closing(_csv_rows(file, separator, compression)) as rows:
        available = next(rows, None)
        if available is None:
            raise UserError(f"data.path={file} is empty")
        if any("\0" in column for column in available):
            raise UserError(
                f"data.path={file} is not readable: its header holds NUL characters, as UTF-16 does; save it as UTF-8"
            )
        names = columns_of(available, file, task, text, date)
        places = [available.index(c) for c in names]

        def make() -> pa.Table:
            cells: list[list[str]] = [[] for _ in places]
            parts, size = [], 0
            for row in rows:
                for place, column in zip(places, cells, strict=True):
                    cell = row[place]
                    column.append("" if cell == missing else cell)
                    size += len(cell)
                if size > CHARACTERS_AT_A_TIME:
                    parts.append(_arrow(cells, names))
                    cells, size = [[] for _ in places], 0
            return pa.concat_tables([*parts, _arrow(cells, names)])

        stat = file.stat()
        if stat.st_size < LARGE:
            table = make()
        else:
            about = ["table", 2, str(file.resolve()), stat.st_size, stat.st_mtime_ns, separator, names]
            table = kept("tables", digest([*about, missing]), make)
    return finish(table.to_pandas(), f"data.path={file}")


def _arrow(columns: list[list[str]], names: Mapping[str, str]) -> pa.Table:
    return pa.table([pa.array(c, pa.large_string()) for c in columns], list(names.values()))


def _csv_rows(file: Path, separator: str, compression: str | None) -> Generator[list[str], None, None]:
    """The header and then each row, as many cells in each; a blank line is no row.

    Python's csv, since it can be strict: Arrow's and pandas' readers take `"one" two` for `one two`, and two rows
    with a quote too many each for one row. It is as fast as Arrow's.
    """
    with text_lines(file, compression) as lines:
        rows = csv.reader(lines, delimiter=separator, strict=True)
        n_cells, line, unreadable = 0, 1, f"data.path={file} is not readable:"
        try:
            for row in rows:
                if row:
                    n_cells = n_cells or len(row)
                    if len(row) != n_cells:
                        raise UserError(
                            f"{unreadable} line {line} has {len(row)} cells and the header {n_cells}; put a cell that "
                            f"holds {separator!r} or a line break in quotes"
                        )
                    yield row
                line = rows.line_num + 1
        except csv.Error as error:
            if "end of data" in str(error):
                raise UserError(
                    f"data.path={file}: a quote is opened and never closed, in the row that begins in line {line}; "
                    "close it, or put the cell in quotes and write the quote within it twice"
                ) from error
            raise UserError(
                f"{unreadable} in the row that begins in line {line} a quoted cell goes on behind its closing quote; "
                "write a quote within a cell twice"
            ) from error
