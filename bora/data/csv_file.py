"""Read CSV strictly and in bounded memory."""

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pandas as pd

from bora.data.columns import Columns, finish, text_table
from bora.data.streams import text_lines
from bora.errors import UserError
from bora.lib.cache import cached_table, digest

MAX_PART_ROWS = 2**13  # held as Python strings, before their needed columns become Arrow's
MIN_CACHED_BYTES = 2**26  # smallest CSV file whose needed columns are worth caching
csv.field_size_limit(2**31 - 1)  # a cell may be long; the module's own limit is 128 KiB


def read_csv(file: Path, columns: Columns, separator: str = ",", missing: str | None = None) -> pd.DataFrame:
    """Read a CSV file's needed columns, see `finish`; those of a large file are cached for the next start.

    Args:
        file: plain or compressed.
        missing: a cell that stands for a missing value; None if there is no such mark.

    Raises:
        UserError: the file is not UTF-8, or a row does not match the header (names the line); or there are no rows.
    """
    rows = _rows(file, separator)
    header = next(rows, [])
    if len(header) == 1 and (others := [s for s in ";|\t," if s in header[0] and s != separator]):
        raise UserError(
            f"the header has one column, {header[0]!r}; its columns seem to be separated by {others[0]!r}: save it with "
            "commas (.csv) or tabs (.tsv)"
        )
    found = columns.find(header)
    places = {name: header.index(name) for name in found.values()}

    def parts() -> Iterator[dict[str, list[str]]]:
        while part := list(islice(rows, MAX_PART_ROWS)):
            yield {c: ["" if row[i] == missing else row[i] for row in part] for c, i in places.items()}

    stat = file.stat()
    if stat.st_size < MIN_CACHED_BYTES:
        return finish(text_table(parts(), found))
    about = ["table", 3, str(file.resolve()), stat.st_size, stat.st_mtime_ns, separator, missing, found]
    return finish(cached_table("tables", digest(about), lambda: text_table(parts(), found)))


def _rows(file: Path, separator: str) -> Iterator[list[str]]:
    """Yield the header and then each row, with the header's number of cells; skip blank lines.

    Python's csv module can be strict. Arrow's and pandas' readers take `"one" two` for `one two`, and two rows that each
    have one quote too many for one row; and they are no faster.
    """
    rows = csv.reader(text_lines(file), delimiter=separator, strict=True)
    n_cells, line = 0, 1
    try:
        for row in rows:
            if row:
                n_cells = n_cells or len(row)
                if len(row) != n_cells:
                    raise UserError(
                        f"line {line} has {len(row)} cells and the header {n_cells}; put a cell that contains "
                        f"{separator!r} or a line break in quotes"
                    )
                yield row
            line = rows.line_num + 1
    except csv.Error as error:
        problem = 'text after a closing quote. Double the quotes inside a cell: ""'
        if "end of data" in str(error):
            problem = 'a quote is opened and never closed. Close it, or double the quotes inside a cell: ""'
        raise UserError(f"the row that begins in line {line}: {problem}") from error
