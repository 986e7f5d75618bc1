"""Read CSV strictly and in bounded memory."""

import csv
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path

import pandas as pd
import pyarrow as pa

from bora.data.columns import Columns, finish
from bora.data.streams import text_lines
from bora.errors import UserError
from bora.lib.cache import cached_table, digest

MAX_PART_CHARS = 2**26  # of the needed columns as Python's strings, before they become Arrow's
MIN_CACHED_BYTES = 2**26  # of a CSV file whose needed columns are worth caching
csv.field_size_limit(2**31 - 1)  # a cell may be long; the module's own limit is 128 KiB


def read_csv(file: Path, columns: Columns, separator: str = ",", missing: str | None = None) -> pd.DataFrame:
    """Read a CSV file's needed columns; those of a large file are cached for the next start.

    Args:
        file: plain or compressed.
        missing: a cell that stands for a missing value; None if there is no such mark.

    Returns:
        Columns task, text, date; the index counts rows from 0.

    Raises:
        ReadError: see Columns.find.
        UserError: the file is empty, not UTF-8, or a row is not as the header says; names the line.
    """
    with closing(_rows(file, separator)) as rows:
        available = next(rows, None)
        if available is None:
            raise UserError("the file is empty")
        if any("\0" in column for column in available):
            raise UserError("the header holds NUL characters, as UTF-16 does; save it as UTF-8")
        names = columns.find(available)
        places = [available.index(c) for c in names]

        def make() -> pa.Table:
            cells: list[list[str]] = [[] for _ in places]
            parts, size = [], 0
            for row in rows:
                for place, column in zip(places, cells, strict=True):
                    cell = row[place]
                    column.append("" if cell == missing else cell)
                    size += len(cell)
                if size > MAX_PART_CHARS:
                    parts.append(_to_arrow(cells, names))
                    cells, size = [[] for _ in places], 0
            return pa.concat_tables([*parts, _to_arrow(cells, names)])

        stat = file.stat()
        if stat.st_size < MIN_CACHED_BYTES:
            table = make()
        else:
            about = ["table", 2, str(file.resolve()), stat.st_size, stat.st_mtime_ns, separator, names]
            table = cached_table("tables", digest([*about, missing]), make)
    return finish(table.to_pandas())


def _to_arrow(columns: list[list[str]], names: Mapping[str, str]) -> pa.Table:
    return pa.table([pa.array(c, pa.large_string()) for c in columns], list(names.values()))


def _rows(file: Path, separator: str) -> Generator[list[str], None, None]:
    """Yield the header and then each row, with the header's number of cells; skip blank lines.

    Python's csv can be strict. Arrow's and pandas' readers take `"one" two` for `one two`, and two rows with a quote
    too many each for one row; and they are no faster.
    """
    with text_lines(file) as lines:
        rows = csv.reader(lines, delimiter=separator, strict=True)
        n_cells, line = 0, 1
        try:
            for row in rows:
                if row:
                    n_cells = n_cells or len(row)
                    if len(row) != n_cells:
                        raise UserError(
                            f"line {line} has {len(row)} cells and the header {n_cells}; put a cell that holds "
                            f"{separator!r} or a line break in quotes"
                        )
                    yield row
                line = rows.line_num + 1
        except csv.Error as error:
            problem = 'text after a closing quote. Double the quotes inside a cell: ""'
            if "end of data" in str(error):
                problem = 'a quote is opened and never closed. Close it, or double the quotes inside a cell: ""'
            raise UserError(f"the row that begins in line {line}: {problem}") from error
