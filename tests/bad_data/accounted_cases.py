"""Odd tables that can be trained on; each with what must come of every row."""

import csv
import unicodedata
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from tests.bad_data.inputs import (
    GOOD,
    PACKED,
    WITHOUT_NUMBERS,
    Write,
    dataset,
    docs,
    in_folder,
    model_without_numbers,
    named,
    parquet,
    saved,
    to_csv,
    to_json,
    zipped,
)

Row = tuple[str, str] | str
NO_TASK, EMPTY, REPEATED = "without a task", "empty", "repeated within their task"
BOUNDS, NO_TOKEN = "of tasks outside the bounds on documents", "without a token to score"


@dataclass(frozen=True)
class Accounted:
    """A case.

    Attributes:
        data: what the file holds, or what writes it.
        rows: of each row of the table the task and the text that are kept, or why it is dropped.
        file: its name.
        options: of the run, beside RUN.
        said: regular expressions of what is printed.
        tasks: in their order; None for those with most documents first, then by name.
        splits: of the rows that are listed.
    """

    name: str
    data: bytes | Write
    rows: list[Row] = field(default_factory=lambda: list(GOOD))
    file: str = "t.csv"
    options: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    tasks: list[str] | None = None
    splits: dict[int, str] = field(default_factory=dict)


def some_without_tokens(path: Path) -> None:
    model_without_numbers(path.with_name("model"))
    path.write_bytes(to_csv([("a", text) for text in WORDS]))


def dated(*dates: str) -> bytes:
    return to_csv([(*row, date) for row, date in zip(docs("a", len(dates)), dates, strict=True)], DATED)


def ordered(*rows: int) -> dict[int, str]:
    """The split of eight documents, the earliest first."""
    return dict(zip(rows, 4 * ["train"] + 2 * ["validation"] + 2 * ["test"], strict=True))


def many(*tasks: str) -> list[tuple[str, str]]:
    return [row for task in tasks for row in docs(task)]


def odd_parquet(path: Path) -> None:
    table = {
        "task": pa.array([7, 7, 7, None, 12, 12, 12]),
        "text": pa.array([t.encode() for _, t in docs("b", 7)]),
        "date": pa.array([datetime(2001, 1, 1, tzinfo=UTC)] * 7, pa.timestamp("ms", "UTC")),
    }
    pa.parquet.write_table(pa.table(table), path)


def labels(path: Path) -> None:
    import datasets

    names = datasets.Features(
        {"task": datasets.ClassLabel(names=["Zoë", "b/c"]), "text": datasets.Value("string")}
    )
    columns = {"task": [0, 0, 0, 1, 1, 1, -1, None, 0], "text": [*(t for _, t in docs("x", 8)), None]}
    datasets.Dataset.from_dict(columns, features=names).save_to_disk(path)


DATED = ("task", "text", "date")
BY_DATE = ("data.split.method=date",)
ODD = [
    "one\ntwo\r\nthree", "a lone\rreturn", 'she said "yes, yes"', ",;\t|", "NUL \0 and bell \x07 and \x1a", "\ufeffmark",
    "مرحبا بالعالم", "e\u0301 is é", "👩‍👩‍👧 and \U0001f1f3\U0001f1f4", "\u2028 and \x85 and \x0c", "\\N \\n \\", "'",
    "NA", "0", "x" * 200_000,
]  # fmt: skip
WHITE = ["", " ", "\t", "\n", "\r\n", "\u00a0", "\u2003\u3000", "\x1c\x1f", "\x85", "\u2028"]
INVISIBLE = ["\u200b", "\ufeff", "\u00ad", "\u2060\u200d", "\0"]
WORDS = ["one two", "one 7", "7 8 9", "two", "two one", "1"]
NOTHING = ["NA", "nan", "NaN", "null", "None", "true", "#N/A", "-"]
FEW = ["7", "007", "NA"]
NUMBERS = ["7", "007", "7.0", "1e3", "-0", "99999999999999999999"]
NFC, NFD = "José Ångström", unicodedata.normalize("NFD", "José Ångström")
ALIKE = "stay different tasks: 'Ann' and 'ann' and 'ANN'; where one is meant"
SAME = [("a", "the same words"), ("a", "the same words")] * 4
LONG = " ".join(f"word{i}" for i in range(3000))

READING = [
    Accounted("a byte order mark", b"\xef\xbb\xbf" + to_csv()),
    Accounted("a byte order mark and quotes", b"\xef\xbb\xbf" + to_csv(quoting=csv.QUOTE_ALL)),
    Accounted("a byte order mark in JSON", b"\xef\xbb\xbf" + to_json(named()), file="t.jsonl"),
    Accounted("Windows' line ends", to_csv(ends="\r\n")),
    Accounted("old line ends", to_csv(ends="\r")),
    Accounted("no line end at the end", to_csv()[:-1]),
    Accounted("blank lines are no rows", b"\n\n" + to_csv(ends="\n\n\r\n") + b"\n"),
    Accounted("every cell in quotes", to_csv([("a", text) for text in ODD], quoting=csv.QUOTE_ALL),
              [("a", text) for text in ODD]),
    Accounted("the same in JSON", to_json({"task": "a", "text": text} for text in ODD),
              [("a", text) for text in ODD], "t.jsonl"),
    Accounted("the same in Parquet", parquet(task=["a"] * len(ODD), text=ODD),
              [("a", text) for text in ODD], "t.parquet"),
    Accounted("TSV with commas", to_csv([("a", f'{i}, "{i}"') for i in range(4)], separator="\t"),
              [("a", f'{i}, "{i}"') for i in range(4)], "t.tsv"),
    Accounted("a quote within a cell", to_csv() + b'a,a 5" pipe\n', [*GOOD, ("a", 'a 5" pipe')]),
    Accounted("two columns that nobody needs", to_csv([(*r, "x", "y") for r in GOOD], ("task", "text", "n", "n"))),
    Accounted("two files one after the other", to_csv() * 2, [*GOOD, BOUNDS, *[REPEATED] * 8]),
    *(Accounted(f"two archives one after the other, .{end}", pack(to_csv()[:50]) + pack(to_csv()[50:]),
                file=f"t.csv.{end}") for end, pack in PACKED.items()),
    Accounted("a .zip", zipped({"whatever": to_csv()}), file="t.csv.zip"),
    Accounted("JSON without some keys",
              to_json([*named(), {"text": "x"}, {"task": "a"}, {"task": None, "text": "y"}, {"task": "b", "text": None}]),
              [*GOOD, NO_TASK, EMPTY, NO_TASK, EMPTY], "t.jsonl"),
    Accounted("not a number in JSON", to_json(named()) + b'{"task": NaN, "text": "x"}\n{"task": "a", "text": NaN}\n',
              [*GOOD, NO_TASK, EMPTY], "t.jsonl"),
    Accounted("not a number in Parquet",
              parquet(task=[0.5, 0.5, 0.5, float("nan"), None], text=[t for _, t in docs("x", 5)]),
              [*(("0.5", t) for _, t in docs("x", 3)), NO_TASK, NO_TASK], "t.parquet"),
    Accounted("numbers with gaps and bytes in Parquet", odd_parquet,
              [("12" if i > 3 else "7", t) if i != 3 else NO_TASK for i, (_, t) in enumerate(docs("b", 7))], "t.parquet"),
    Accounted("a saved dataset's labels", labels,
              [("b/c" if i > 2 else "Zoë", t) if i < 6 else NO_TASK for i, (_, t) in enumerate(docs("x", 8))] + [EMPTY],
              "./d", ("data=datasets",)),
    Accounted("all splits of a dataset", saved(train=dataset(task=["a"] * 4, text=[t for _, t in docs("a")]),
                                               test=dataset(task=["b"] * 4, text=[t for _, t in docs("b")])),
              file="./d", options=("data=datasets", "data.split_name=all")),
    Accounted("a dataset's folder of CSV", in_folder("t.csv", to_csv([r for n in FEW for r in docs(n)])),
              [r for n in FEW for r in docs(n)], "./d", ("data=datasets",)),
    Accounted("a dataset's folder of files", in_folder("t.jsonl", to_json([*named(), {"task": "a", "text": None}])),
              [*GOOD, EMPTY], "./d", ("data=datasets",)),
]  # fmt: skip

TEXTS = [
    Accounted("white space alone", to_csv([*GOOD, *(("a", text) for text in WHITE)], quoting=csv.QUOTE_ALL),
              [*GOOD, *[EMPTY] * len(WHITE)]),
    Accounted("invisible, and yet text", to_csv([("a", text) for text in INVISIBLE], quoting=csv.QUOTE_ALL),
              [("a", text) for text in INVISIBLE]),
    Accounted("50 megabytes of white space", to_csv([*GOOD, ("a", " " * 50_000_000)]), [*GOOD, EMPTY]),
    Accounted("some without a token", some_without_tokens,
              [("a", t) if t.strip("0123456789 ") else NO_TOKEN for t in WORDS], options=WITHOUT_NUMBERS),
    Accounted("one token each", to_csv([("a", letter) for letter in "uvwxyz"]), [("a", letter) for letter in "uvwxyz"]),
    Accounted("more tokens than positions", to_csv([*GOOD, ("a", LONG)]), [*GOOD, ("a", LONG)]),
    Accounted("repeated", to_csv([*GOOD, *GOOD[:2], ("b", GOOD[0][1])]), [*GOOD, REPEATED, REPEATED, ("b", GOOD[0][1])],
              said=("leakage: ",)),
    Accounted("one text eight times", to_csv(SAME), list(SAME), options=("data.drop_duplicates=false",),
              said=(r"leakage: 2 of 2 validation documents repeat a text of training \(2 of their own task\), "
                    r"2 of 2 test documents repeat a text of training or validation \(2 of their own task\)\n",)),
    Accounted("two tasks of the same texts", to_csv(SHARED := [(t, x) for t in "ab" for _, x in docs("x", 8)]), SHARED,
              said=("leakage: . of 4 ",)),
    Accounted("too short", to_csv([*GOOD, ("a", "12345"), ("a", "123456")]),
              [*GOOD, "of 5 characters or fewer", ("a", "123456")], options=("data.min_characters=5",)),
]  # fmt: skip

TASKS = [
    Accounted("numbers as names", to_csv(many(*NUMBERS)), many(*NUMBERS)),
    Accounted("numbers as names in JSON", b"".join(
        f'{{"task": {n}, "text": "{t}"}}\n'.encode() for n in ("7", "7.0", "1e3", "true") for _, t in docs(n)
    ), many("7", "7.0", "1e3", "true"), "t.jsonl"),
    Accounted("names that say there is none", to_csv(many(*NOTHING)), many(*NOTHING),
              said=("stay different tasks: 'nan' and 'NaN'; where",)),
    Accounted("names missing", to_csv([*GOOD, *((name, "x") for name in ("", "  ", "\u00a0", "\t"))]),
              [*GOOD, *[NO_TASK] * 4]),
    Accounted("capital letters", to_csv(many("Ann", "ann", "ANN")), many("Ann", "ann", "ANN"), said=(ALIKE,)),
    Accounted("one name in two forms of Unicode", to_csv([*docs(NFC), *((NFD, text) for _, text in docs(NFC, 6))]),
              [*docs(NFC), *[REPEATED] * 4, *docs(NFC, 6)[4:]],
              said=(r"1 task\(s\) are spelled in more than one way.*'Jos\\xe9 .* and 'Jose\\u0301 ",)),
    Accounted("white space in names", to_csv([(n, f"x{i}") for i, n in enumerate(("A B", " A  B ", "A\nB", "A\u00a0B"))]),
              [("A B", f"x{i}") for i in range(4)], said=(r"1 task\(s\) are spelled in more than one way",)),
    Accounted("a character that is not seen", to_csv(many("Ann", "Ann\u200b", "Ａnn")), many("Ann", "Ann\u200b", "Ａnn"),
              said=(r"stay different tasks: 'Ann' and 'Ann\\u200b' and '\\uff21nn'",)),
    Accounted("one task", to_csv(docs("a")), docs("a"), said=("only 1 tasks can be chosen",)),
    Accounted("one document in a task", to_csv([("c", "x"), *GOOD, ("d", "y")]), [BOUNDS, *GOOD, BOUNDS]),
    Accounted("tasks that are not chosen", to_csv([*docs("a"), *docs("b", 5), *docs("c", 3)]),
              ["of 2 tasks not chosen (data.n_tasks)" if t != "b" else (t, x)
               for t, x in [*docs("a"), *docs("b", 5), *docs("c", 3)]], options=("data.n_tasks=1",)),
]  # fmt: skip

DATES = [
    Accounted("ISO 8601 in its forms",
              dated("2001-02", "20010105", "2001", "2001-02-03", "2001-02-03T04", "2001-02-03 04:05:06",
                    "2001/02/04", "2001-2-5"),
              docs("a", 8), options=BY_DATE, splits=ordered(2, 1, 0, 3, 4, 5, 6, 7)),
    Accounted("time zones; none is UTC",
              dated("2001-01-01T23:30-05:00", "2001-01-02T04:00Z", "2001-01-02T06:00+02:00", "2001-01-02 03:00",
                    "2001-01-01", "2000-12-31T23:00-02:00", "2001-01-02T05:00", "2001-01-02T09:00+0400"),
              docs("a", 8), options=BY_DATE, splits=ordered(4, 5, 3, 1, 2, 0, 6, 7)),
    Accounted("the future and the past, unsorted",
              dated("2999-01-01", "1814-05-17", "9999-12-31", "0001-01-01", "2001-01-01T00:00:00.123456789", "1999-12-31",
                    "2001-01-01", "3000-01-01"),
              docs("a", 8), options=BY_DATE, splits=ordered(3, 1, 5, 6, 4, 0, 7, 2)),
    Accounted("one day: the table's order", dated(*["2001-01-01"] * 8), docs("a", 8), options=BY_DATE,
              splits=ordered(*range(8))),
    Accounted("white space around", dated(*(f" 2001-01-0{day}\t" for day in (8, 7, 6, 5, 4, 3, 2, 1))), docs("a", 8),
              options=BY_DATE, splits=ordered(*reversed(range(8)))),
    Accounted("dates that nobody asks for", dated(*["yesterday"] * 8), docs("a", 8)),
    Accounted("a date is missing, and the task has others",
              to_csv([(*r, d) for r, d in zip(GOOD, ["2002", "", "2003", "2004", *["2001"] * 4], strict=True)], DATED),
              options=("data.selection=chronological",), tasks=["b", "a"], said=("1 documents without a date",)),
]  # fmt: skip
