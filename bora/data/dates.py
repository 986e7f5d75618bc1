"""Parse the dates of documents."""

import pandas as pd

from bora.errors import UserError


def parse_dates(table: pd.DataFrame, missing: bool = False) -> pd.Series:
    """Parse the date column (ISO 8601) to timestamps; a date without a time zone is UTC.

    Args:
        missing: whether a cell may be empty.

    Raises:
        UserError: a date cannot be parsed, or is missing and may not be.
    """
    # pandas also parses "now" and "today"; with units below a microsecond it has no year before 1677 or after 2262.
    text = table["date"].str.strip().str.replace(r"(\.\d{6})\d+", r"\1", regex=True)
    written = text.where(text.str.match(r"\d{4}"))
    dates = pd.to_datetime(written, errors="coerce", format="ISO8601", utc=True)
    bad = dates.isna() & ~((text == "") & missing)
    if bad.any():
        row, date = next(table["date"][bad].items())
        raise UserError(
            f"{bad.sum():,} of {len(table):,} documents have no date of the form YYYY-MM-DD (row {row}: "
            f"{date[:40]!r}), but a chronological order needs one; name the column with "
            "data.date, leave those rows out, or use data.selection=largest and data.split.method=random"
        )
    return dates
