"""Tables that can be read and not be trained on; each with what is said of it."""

from pathlib import Path

from tests.bad_data.inputs import (
    GOOD,
    WITHOUT_NUMBERS,
    Refused,
    docs,
    model_without_numbers,
    named,
    to_csv,
    to_json,
)

BY_DATE = ("data.split.method=date",)
FIRST = ("data.selection=chronological",)


def dated(*dates: str) -> bytes:
    """A table with these dates in its first rows, of task a, and good ones after."""
    days = [*dates, *(f"2001-02-{day:02d}" for day in range(1, 9 - len(dates)))]
    return to_csv([(*row, day) for row, day in zip(GOOD, days, strict=True)], ("task", "text", "date"))


def texts_of_numbers(path: Path) -> None:
    model_without_numbers(path.with_name("model"))
    path.write_bytes(to_csv([("a", text) for text in ("one", "two", "7", "8")]))


DATES = [
    Refused("day first", dated("03/02/2001"),
            r"^bora: 1 of 8 documents have no date of the form YYYY-MM-DD \(row 0: '03/02/2001'\)", options=BY_DATE),
    Refused("in words", dated("3 February 2001"), "row 0: '3 Feb", options=BY_DATE),
    Refused("now", dated("now"), "row 0: 'now'", options=BY_DATE),
    Refused("today", dated("2001-01-01", "today"), "row 1: 'today'", options=FIRST),
    Refused("a day that never was", dated("2001-02-30"), "row 0: '2001-02-30'", options=BY_DATE),
    Refused("seconds since 1970", dated("981158400"), "row 0: '981158400'", options=BY_DATE),
    Refused("two digits of a year", dated("01-02-03"), "row 0: '01-02-03'", options=BY_DATE),
    Refused("the year 12345", dated("12345-01-01"), "row 0: '12345-01-01'", options=BY_DATE),
    Refused("before Christ", dated("-0044-03-15"), "row 0: '-0044-03-15'", options=BY_DATE),
    Refused("a time zone that is none", dated("2001-02-03T10:00:00+25:00"), "row 0: '2001", options=BY_DATE),
    Refused("several formats", dated("2001-01-01", "02/01/2001", "3 Jan 2001"), "2 of 8 .*row 1", options=BY_DATE),
    Refused("one of them missing", dated("2001-01-01", ""), "1 of 8 .*row 1: ''", options=BY_DATE),
    Refused("a task without", dated("", "", "", ""), "4 of 4 .*row 0: ''", options=FIRST),
    Refused("unreadable, beside others of the task", dated("2001-01-01", "02/01/1999"), "1 of 8 .*row 1",
            options=FIRST),
    Refused("no column of dates", to_csv(), "8 of 8 .*name the column with data.date", options=BY_DATE),
    Refused("not that column", to_csv(), "data.date=day: .*it has task, text$", options=(*BY_DATE, "data.date=day")),
]  # fmt: skip

TASKS = [
    Refused("NUL in a name", to_csv([*GOOD, ("a\0b", "c")]),
            r"the task's name 'a\\x00b' in row 8 \(counted from 0\) holds a control character; take it out$"),
    Refused("a terminal's escape in a name", to_csv([*GOOD, ("\x1b[31mred", "c")]), r"'\\x1b\[31mred' in row 8"),
    Refused("no name anywhere", to_csv([("", text) for _, text in GOOD]),
            "the largest has 0; dropped: 8 without a task.*look at the columns data.task and data.text$"),
    Refused("as many tasks as documents", to_csv([(f"t{i}", f"x{i}") for i in range(30)]),
            r"no task has between 3 and ∞ documents \(the largest has 1\); change data.min_documents"),
    Refused("one document in a task that may have so few", to_csv([*GOOD, ("c", "x")]),
            "task 'c' has 1 document.*set data.min_documents to 3 or more$", options=("data.min_documents=1",)),
    Refused("bounds that shut out all", to_csv(), r"between 3 and 3 documents \(the largest has 4\)",
            options=("data.max_documents=3",)),
    Refused("caps for other tasks", to_csv(), "lists 3 numbers, but there are 2 tasks",
            options=("data.documents_per_task=[3,3,3]",)),
]  # fmt: skip

TEXTS = [
    Refused("white space alone", to_csv([(task, " \t\u3000") for task, _ in GOOD]), "dropped: 8 empty.*look at"),
    Refused("one text again and again", to_csv([("a", "x"), ("b", "y")] * 9),
            "the largest has 1; dropped: 16 repeated within their task"),
    Refused("all too short", to_csv(), "dropped: 8 of 1000 characters or fewer.*look at",
            options=("data.min_characters=1000",)),
    Refused("one token, and none before it", to_csv([("a", letter) for letter in "xyzw"]),
            "task 'a' has no document with a token to score, of 4 .*data.min_characters$",
            options=("data.prepend_bos=false",)),
    Refused("no token at all", texts_of_numbers, "task 'a' has 2 documents with a token to score, of 4 ",
            options=WITHOUT_NUMBERS),
    Refused("a prompt that leaves no room", to_csv(), "no document with a token to score.*shorten the prompt",
            options=(f"data.prompt='{'word ' * 20}'",)),
    Refused("a name that leaves no room in the prompt", to_csv(docs("b") + docs("x y " * 30)),
            "task 'x y x.*no document with a token", options=("data.prompt='{task}'",)),
    Refused("50 megabytes in a cell", to_csv([*GOOD, ("a", "a book " * 7_150_000)]),
            r"the text in row 8 \(counted from 0\) has 50,050,000 characters, and at most 8,388,608 can"),
    Refused("50 megabytes in a line of JSON", to_json([*named(), {"task": "a", "text": "x" * 50_000_000}]),
            "the text in row 8 .*; divide it into documents, or take it out$", "t.jsonl"),
    Refused("more tokens than positions", to_csv(), "data.max_tokens=257: the model has 256 positions",
            options=("data.max_tokens=257",)),
]  # fmt: skip
