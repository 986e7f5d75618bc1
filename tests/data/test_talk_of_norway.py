"""The reader on a generated ton.csv with columns of the real file."""

import csv
import http.server
import io
import os
import re
import tarfile
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bora.data import talk_of_norway
from bora.data.columns import Columns
from bora.data.read import read_documents
from bora.data.select import select
from bora.data.split import split
from bora.errors import UserError
from bora.model.pretrained import load_packaged
from tests.data.inputs import data_group

COLUMNS = "id rep_name party_name debate_title keywords date title text".split()  # the real file has 80 others
SPEECHES = Columns("rep_name", "text", "date")
SIZES = {"Zoë A. Å": 60, "Bjørn Tore": 30, "Dag": 120}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def ton(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ton") / "ton.csv"
    rng = np.random.default_rng(0)
    names = rng.permutation([n for n, k in SIZES.items() for _ in range(k)]).tolist()
    rows = []
    for i, name in enumerate(names):
        day = f"{1998 + i * 18 // len(names)}-10-{i % 28 + 1:02d}"
        text = f'Tale {i}: «ærede president», han sa "ja, {i}"\nog gikk, lenge nok til å telle.'
        rows.append({"id": i, "rep_name": name, "date": day, "text": text})
    for missing in ("", "NA"):  # presidents have no name
        rows.append({"id": len(names), "rep_name": missing, "date": "1998-10-01", "text": "Presidenten sier noe."})
    other = 'NA, "quoted"\nand broken'  # for the columns that are not read
    pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False, quoting=csv.QUOTE_ALL, na_rep=other)
    return path


def test_the_needed_columns_equal_those_of_csv(ton):
    table = talk_of_norway.read(str(ton.parent), "", SPEECHES)
    with ton.open(newline="", encoding="utf-8") as source:
        expected = [(r["rep_name"].replace("NA", ""), r["text"], r["date"]) for r in csv.DictReader(source)]
    assert list(table.itertuples(index=False, name=None)) == expected


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^data\.path=.*: there is no ton\.csv"):
        read_documents(data_group("talk_of_norway", path=str(tmp_path)))
    (tmp_path / "ton.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"^data\.task=rep_name: there is no such column; the table has a, b$"):
        read_documents(data_group("talk_of_norway", path=str(tmp_path)))


class RangeHandler(http.server.BaseHTTPRequestHandler):
    """Serve one body, whole or from a given byte on."""

    body, ranges = b"", []

    def do_GET(self):
        if self.path != "/ton101.tar.gz":
            self.send_error(404)
            return
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(match[1]) if match else 0
        type(self).ranges.append(start)
        rest = self.body[start:]
        self.send_response(206 if match else 200)
        self.send_header("Content-Length", str(len(rest)))
        if match:
            self.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        self.end_headers()
        self.wfile.write(rest)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(ton, monkeypatch):
    # http_get obeys HF_HUB_OFFLINE, which the environment of the tests may set.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(_file("ton101/README", 5), io.BytesIO(b"hello"))
        archive.add(ton, "ton101/data/ton.csv")
        archive.addfile(_file("ton101/data/annotations/tale1.tsv", 4), io.BytesIO(b"1 2\n"))
    handler = type("Handler", (RangeHandler,), {"body": packed.getvalue(), "ranges": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/ton101.tar.gz", handler
        running.shutdown()


def _file(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def test_the_archive_is_downloaded_and_unpacked_once(server, ton, tmp_path, capfd, monkeypatch):
    url, handler = server
    monkeypatch.setenv("TQDM_POSITION", "-1")  # show a progress bar although this is no terminal
    load_packaged("opt_mini")  # as a run does before it reads its data
    table = talk_of_norway.read(None, url, SPEECHES)
    assert "Talk of Norway: 100%" in capfd.readouterr().err
    assert len(table) == sum(SIZES.values()) + 2
    folder = tmp_path / "cache/talk_of_norway"
    assert os.listdir(folder) == ["ton.csv"]  # the archive and the annotations are not kept
    assert (folder / "ton.csv").read_bytes() == ton.read_bytes()
    talk_of_norway.read(None, url, SPEECHES)
    assert handler.ranges == [0]


def test_a_download_resumes_and_a_failed_or_incomplete_one_is_reported(server, ton, tmp_path):
    url, handler = server
    with pytest.raises(UserError, match="could not be downloaded"):
        talk_of_norway.download(url.replace("ton101", "ton102"))
    folder, half = tmp_path / "cache/talk_of_norway", len(handler.body) // 2
    (folder / "archive.tar.gz.partial").write_bytes(handler.body[:half])
    talk_of_norway.download(url)  # resumes
    assert handler.ranges == [half]
    assert (folder / "ton.csv").read_bytes() == ton.read_bytes()
    (folder / "ton.csv").unlink()
    handler.body = handler.body[:half]
    with pytest.raises(UserError, match="not a complete"):
        talk_of_norway.download(url)


def test_only_ton_csv_is_extracted_and_only_to_its_place(tmp_path):
    content = b"rep_name,text\na,b\n"
    link = tarfile.TarInfo("data/ton.csv")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for name in ("../evil", "/tmp/evil"):
            archive.addfile(_file(name, 1), io.BytesIO(b"1"))
        archive.addfile(link)
        archive.addfile(_file("../../ton.csv", len(content)), io.BytesIO(content))
    (tmp_path / "cache").mkdir()
    talk_of_norway._extract(tmp_path / "a.tar.gz", tmp_path / "cache/ton.csv")
    assert (tmp_path / "cache/ton.csv").read_bytes() == content
    assert sorted(f.name for f in tmp_path.rglob("*")) == ["a.tar.gz", "cache", "ton.csv"]
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as archive:
        archive.addfile(link)
    with pytest.raises(UserError, match=r"holds no ton\.csv"):
        talk_of_norway._extract(tmp_path / "b.tar.gz", tmp_path / "cache/other.csv")


@pytest.mark.skipif(
    "BORA_TON_CSV" not in os.environ,
    reason="set BORA_TON_CSV to the real ton.csv and BORA_FIGURE1 to the paper's sizes",
)
def test_the_real_files_task_sizes_equal_those_of_figure_1():
    table = talk_of_norway.read(os.environ["BORA_TON_CSV"], "", SPEECHES)
    kept, names, _ = select(table, "reference", n_tasks=25, min_characters=40, drop_duplicates=False)
    sizes = pd.crosstab(kept["task"], split(kept, method="reference")).loc[names, ["train", "validation", "test"]]
    expected = pd.read_csv(os.environ["BORA_FIGURE1"], index_col="task")
    pd.testing.assert_frame_equal(sizes, expected, check_names=False)
