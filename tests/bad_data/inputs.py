"""What the bad tables are made of: rows, ways to write and to pack them, and the small run that reads them."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from bora.model.pretrained import packaged

Write = Callable[[Path], object]  # writes a case's input to the path
# As little of a run as there is.
RUN = (
    "data=table", "data.min_documents=3", "data.max_tokens=16", "trainer.max_steps=1", "logger=none",
    "lora.rank=1", "hydra.run.dir=run",
)  # fmt: skip


@dataclass(frozen=True)
class Refused:
    """A case.

    Attributes:
        data: what the file holds, or what writes it.
        said: a regular expression of the line.
        file: its name.
        options: of the run, beside RUN.
    """

    name: str
    data: bytes | Write
    said: str
    file: str = "t.csv"
    options: tuple[str, ...] = ()


def put(case: Refused, folder: Path) -> None:
    """Write a case's file."""
    path = folder / case.file
    if isinstance(case.data, bytes):
        path.write_bytes(case.data)
    else:
        case.data(path)


def docs(task: str, n: int = 4) -> list[tuple[str, str]]:
    """Rows of a task, of different texts that no other task has."""
    return [(task, f"def {ascii(task)[1:-1]}_{i}(self): return {i}") for i in range(n)]


GOOD = docs("a") + docs("b")


def to_csv(
    rows: Iterable[Iterable[str]] = GOOD,
    header: Iterable[str] = ("task", "text"),
    separator: str = ",",
    ends: str = "\n",
    quoting: int = csv.QUOTE_MINIMAL,
) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator=ends, quoting=quoting)
    writer.writerows([header, *rows])
    return out.getvalue().encode()


def to_json(rows: Iterable[object]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(
        "utf-8", "surrogatepass"
    )


def named(rows: Iterable[tuple[str, str]] = GOOD) -> list[dict[str, str]]:
    """Rows as objects."""
    return [{"task": task, "text": text} for task, text in rows]


def parquet(**columns: object) -> Write:
    return lambda path: pa.parquet.write_table(pa.table(columns), path)


def two_columns_of_one_name(path: Path) -> None:
    tasks, texts = (pa.array(column) for column in zip(*GOOD, strict=True))
    pa.parquet.write_table(pa.table([tasks, texts, texts], ["task", "text", "text"]), path)


def not_utf8(path: Path) -> None:
    """A Parquet file that says that its bytes are text."""
    texts = pa.array([text.encode() + b"\xff" for _, text in GOOD]).view(pa.string())
    pa.parquet.write_table(pa.table({"task": [task for task, _ in GOOD], "text": texts}), path)


def zst(data: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as packed:
        packed.write(data)
    return out.getvalue().to_pybytes()


PACKED = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zst}


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def locked_zip() -> bytes:
    """An archive that says it needs a password."""
    data = bytearray(zipped({"t.csv": to_csv()}))
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + flags] |= 1
    return bytes(data)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def dataset(**columns: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


def saved(**splits: datasets.Dataset) -> Write:
    return lambda path: datasets.DatasetDict(splits).save_to_disk(path)


def in_folder(name: str, data: bytes) -> Write:
    """A folder that holds one file."""

    def write(path: Path) -> None:
        path.mkdir()
        (path / name).write_bytes(data)

    return write


def model_without_numbers(folder: Path) -> None:
    """opt_mini with a tokenizer of a token a word, that leaves digits out."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1, "?": 2, "one": 3, "two": 4}, unk_token="?")
    )
    backend.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex(r"\d"), "")
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing("</s> $A", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="</s>", eos_token="</s>", pad_token="<pad>"
    )
    packaged("opt_mini").model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


WITHOUT_NUMBERS = ("model=hub", "model.path=model", "model.dtype=float32")


def frame(rows: list[tuple[str, str]] = GOOD) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["task", "text"])


def each(groups: Mapping[str, Sequence[Any]]) -> pytest.MarkDecorator:
    """A test's parameter `case`, named by its group and its own name."""
    cases = [
        pytest.param(case, id=f"{group}: {case.name}") for group, some in groups.items() for case in some
    ]
    return pytest.mark.parametrize("case", cases)
