"""Building blocks for tests of reading: a typed `data` group, rows, and ways to write and compress them."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Iterable
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet
import yaml
from pydantic import Field, TypeAdapter

from bora.config.schema import AnyData, conf_folder
from bora.data.corpus import Corpus, build_corpus
from bora.data.read import read_documents
from bora.data.tokens import Tokens
from bora.model.pretrained import load_packaged

SCHEMA: TypeAdapter = TypeAdapter(Annotated[AnyData, Field(discriminator="source")])


def data_group(source: str = "table", split: dict[str, Any] | None = None, **changes: Any) -> AnyData:
    """Return conf's values for a source with changes; three documents are enough for a task."""
    shared, own = (
        yaml.safe_load((conf_folder() / f"data/{name}.yaml").read_text("utf-8")) for name in ("_shared", source)
    )
    own.pop("defaults")
    parts = shared["split"] | own.pop("split", {}) | (split or {})
    return SCHEMA.validate_python(shared | own | {"min_documents": 3} | changes | {"split": parts})


def corpus_of(data: AnyData) -> Corpus:
    """Read the table and build its corpus, with opt_mini's tokenizer."""
    return build_corpus(read_documents(data), Tokens.of(data, *load_packaged("opt_mini")), data)


def docs(task: str, n: int = 4) -> list[tuple[str, str]]:
    """Return rows of a task, with distinct texts that no other task has."""
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


def named(rows: Iterable[tuple[str, str]] = GOOD) -> list[dict[str, str]]:
    return [{"task": task, "text": text} for task, text in rows]


def to_json(rows: Iterable[object]) -> bytes:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return lines.encode("utf-8", "surrogatepass")


def to_parquet(**columns: Any) -> bytes:
    out = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table(columns), out)
    return out.getvalue().to_pybytes()


def zst(data: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as packed:
        packed.write(data)
    return out.getvalue().to_pybytes()


def zipped(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


PACKED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zst,
    "zip": lambda data: zipped(("t.csv", data)),
}
