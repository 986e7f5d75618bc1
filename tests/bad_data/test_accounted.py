"""Odd tables that can be trained on end in a run whose every number is what a person counts."""

import csv
import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoTokenizer

import bora
from bora.use import export
from tests.bad_data import accounted_cases as cases
from tests.bad_data.accounted_cases import Accounted
from tests.bad_data.inputs import GOOD, RUN, docs, each, frame, put, to_csv
from tests.runs.test_trackers import wandb_figures

OPT_MINI = Path(bora.__file__).parent / "assets/opt_mini"
GROUPS = {"reading": cases.READING, "text": cases.TEXTS, "task": cases.TASKS, "date": cases.DATES}


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def share(n: int) -> Counter:
    """Documents in each part of a task's n."""
    quarter = max(1, round(n / 4))
    return Counter(train=n - 2 * quarter, validation=quarter, test=quarter)


def hold(case: Accounted, run: Path, model: Path = OPT_MINI) -> None:
    """Hold a run's files to the case, with nothing of bora's.

    Args:
        model: whose tokenizer the run had.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    kept = {i: row for i, row in enumerate(case.rows) if not isinstance(row, str)}
    lengths = {i: len(tokenizer(text).input_ids) for i, (_, text) in kept.items()}
    documents = rows_of(run / "documents.csv")
    assert [(int(d["row"]), d["task"]) for d in documents] == [(i, task) for i, (task, _) in kept.items()]
    for d, length in zip(documents, lengths.values(), strict=True):
        assert (int(d["n_tokens"]), int(d["n_scored"])) == (min(length, 16), min(length, 16) - 1)
    splits = {int(d["row"]): d["split"] for d in documents}
    assert {i: splits[i] for i in case.splits} == case.splits

    counts = Counter(task for task, _ in kept.values())
    tasks = case.tasks or sorted(counts, key=lambda task: (-counts[task], task))
    scored, parts = Counter(), defaultdict(Counter)
    for d in documents:
        scored[d["task"], d["split"]] += int(d["n_scored"])
        parts[d["task"]][d["split"]] += 1
    for task, row in zip(tasks, rows_of(run / "per_task.csv"), strict=True):
        assert parts[task] == share(counts[task])
        assert row["task"] == task
        assert [int(row[c]) for c in ("n_train", "n_val", "n_test", "train_tokens", "test_tokens")] == [
            *(parts[task][p] for p in ("train", "validation", "test")), scored[task, "train"], scored[task, "test"],
        ]  # fmt: skip

    summary = json.loads((run / "summary.json").read_text("utf-8"))
    assert summary["n_tasks"] == len(tasks)
    assert summary["n_documents"] == list(splits.values()).count("train")
    assert summary["n_tokens"] == sum(n for (_, split), n in scored.items() if split == "train")
    assert summary["dropped"] == Counter(row for row in case.rows if isinstance(row, str))
    assert summary["truncated_documents"] == sum(n > 16 for n in lengths.values())
    assert summary["truncated_tokens"] == sum(max(0, n - 16) for n in lengths.values())
    assert summary["leakage"] == leakage(kept, splits)
    digest = hashlib.sha256()
    for i, (task, text) in kept.items():
        digest.update(json.dumps([i, task, splits[i], text]).encode() + b"\n")
    assert summary["data_sha256"] == digest.hexdigest()
    assert 1 < summary["test_perplexity"] < math.inf


def leakage(kept: dict[int, tuple[str, str]], splits: dict[int, str]) -> dict[str, dict[str, int]]:
    found = {}
    for split, before in (("validation", {"train"}), ("test", {"train", "validation"})):
        here = [kept[i] for i in kept if splits[i] == split]
        seen = {kept[i] for i in kept if splits[i] in before}
        texts = {text for _, text in seen}
        found[split] = {
            "within_task": sum(row in seen for row in here),
            "in_all": sum(text in texts for _, text in here),
        }
    return found


@each(GROUPS)
def test_every_row_is_kept_or_counted(case, command, capfd, tmp_path):
    put(case, tmp_path)
    capfd.readouterr()  # what writing a dataset shows
    code, out, err = command(*RUN, f"data.path={case.file}", *case.options)
    assert (code, err) == (0, "")
    hold(case, tmp_path / "run", tmp_path / "model" if (tmp_path / "model").exists() else OPT_MINI)
    for said in case.said:
        assert re.search(said, out), out
    if not any("spelled" in said or "different tasks" in said for said in case.said):
        assert "spelled" not in out
        assert "different tasks" not in out


NAN, NONE = float("nan"), None
TEXTS = [text for _, text in GOOD]


@pytest.mark.parametrize(
    ("given", "rows", "columns"),
    [
        pytest.param(
            frame().set_axis([0, 1], axis=1), GOOD, {"task": "0", "text": "1"}, id="numbers as columns"
        ),
        pytest.param(frame().set_index([[5] * 8]), GOOD, {}, id="an index that repeats"),
        pytest.param(frame().astype("category"), GOOD, {}, id="categories"),
        pytest.param(
            pd.DataFrame({"task": ["a", "a", "a", NAN, NONE, pd.NA, pd.NaT, "a"], "text": TEXTS}),
            [("a", t) if i < 3 or i == 7 else cases.NO_TASK for i, t in enumerate(TEXTS)],
            {},
            id="nothing in all its forms",
        ),
        pytest.param(
            pd.DataFrame({"task": pd.array([7, 7, 7, NONE, 12, 12, 12, 12], dtype="Int64"), "text": TEXTS}),
            [(str(12 if i > 3 else 7), t) if i != 3 else cases.NO_TASK for i, t in enumerate(TEXTS)],
            {},
            id="numbers with gaps",
        ),
    ],
)
def test_a_frame_is_accounted_for(given, rows, columns, tmp_path):
    options = [option for option in RUN if not option.startswith(("data=", "hydra."))]
    bora.fit(given, *options, output=tmp_path / "run", **columns)
    hold(Accounted("", b"", rows), tmp_path / "run")


NAMES = [
    "../x", "..\\x", ".", "..", "/etc/passwd", "~", "CON", "con.txt", "aux", "COM1", "LPT9.", "-rf", "--help",
    "n" * 300, "n" * 299 + "m", "👩‍👧", "🙂", "🙃", "水", "*?<>|:\"'`$(x)", "a/b", "a-b", "A-B", "${tau}",
    "hierarchical-mean", "{task}", "[red]x[/red]", "=1+1", "%s %d", "train", "None",
]  # fmt: skip


def test_names_that_are_none_for_files(command, call, tmp_path):
    rows = [(name, f"def f{i}_{k}(): pass") for i, name in enumerate(NAMES) for k in range(3)]
    (tmp_path / "t.csv").write_bytes(to_csv(rows))
    code, out, err = command(
        *RUN, "data.path=t.csv", "data.n_tasks=null", "logger=wandb", f"logger.task_lines={len(NAMES)}"
    )
    assert (code, err) == (0, "")
    hold(Accounted("", b"", rows), tmp_path / "run")
    assert "[red]x[/red]" in out
    assert {f"test_perplexity/{name}" for name in NAMES} <= set(wandb_figures(tmp_path / "run/wandb"))
    code, _, err = call(export.main, tmp_path / "run", tmp_path / "out")
    assert (code, err) == (0, "")
    folders = json.loads((tmp_path / "out/tasks.json").read_text("utf-8"))["tasks"]
    assert sorted(folders.values()) == sorted(NAMES)
    assert len({folder.lower() for folder in folders} | {"hierarchical-mean"}) == len(NAMES) + 1
    for folder in folders:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{,70}(?<![.])", folder)
        assert (tmp_path / "out" / folder / "adapter_config.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"t.csv", "run", "out"}


def test_what_leaks_is_counted_where_tasks_share_some_texts(command, tmp_path):
    rows = [*docs("a", 20), *docs("a", 5), *(("b", text) for _, text in docs("a", 15)), *docs("b", 10)]
    (tmp_path / "t.csv").write_bytes(to_csv(rows))
    code, out, _ = command(*RUN, "data.path=t.csv", "data.drop_duplicates=false")
    assert code == 0
    hold(Accounted("", b"", rows), tmp_path / "run")
    found = json.loads((tmp_path / "run/summary.json").read_text("utf-8"))["leakage"]
    assert 0 < found["test"]["within_task"] < found["test"]["in_all"]
    assert f"{found['test']['in_all']} of 12 test documents repeat a text of training or validation" in out
