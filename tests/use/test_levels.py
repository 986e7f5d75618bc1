"""A run with levels above the task, from its table to a new speaker of a known party."""

import numpy as np
import pandas as pd
import pytest
import torch

import bora.commands.adapt
import bora.commands.export
import bora.commands.generate
from bora.commands.overrides import compose_config
from bora.runs.directory import RunDirectory
from bora.train.run import train
from bora.use.adapt import adapt, encode_documents
from bora.use.restore import restore
from tests.conftest import one_line

WORDS = "the house speaker minister asks for a vote on this law today and tomorrow".split()


def write_table(path, tasks: int, first: int = 0, n: int = 20, **more) -> pd.DataFrame:
    rng = np.random.default_rng(first)
    rows = [
        (
            f"t{t}",
            ["left", "right"][t % 2],
            str(2000 + rng.integers(3)),
            " ".join(rng.choice(WORDS, rng.integers(3, 30))),
        )
        for t in range(first, first + tasks)
        for _ in range(n)
    ]
    table = pd.DataFrame(rows, columns=["task", "party", "year", "text"]).assign(**more)
    table.to_csv(path, index=False)
    return table


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels")
    write_table(folder / "t.csv", 6)
    words = (
        f"data=table data.path={folder}/t.csv data.levels=[party,year] tau=[10,100,50] data.max_tokens=20 logger=none"
    )
    config, _ = compose_config([*words.split(), "trainer.max_epochs=2", "optim.lr=0.02", "lora.rank=3"])
    train(config, RunDirectory(folder / "run"), group="g", name="r")
    return folder / "run"


def test_the_runs_files_name_the_levels_and_their_units(run):
    units = pd.read_csv(run / "units.csv")
    assert units["level"].tolist() == ["party"] * 2 + ["year"] * 3
    assert set(units["unit"]) == {"left", "right", "2000", "2001", "2002"}
    assert units.groupby("level")["n_train"].sum().tolist() == [60, 60]
    assert (units["distance"] > 0).all()
    assert RunDirectory(run).summary()["levels"] == {"party": 100, "year": 50}
    assert RunDirectory(run).verify() == []


def test_units_speak_and_are_exported(run, call, tmp_path):
    code, out, _ = call(
        bora.commands.generate.main,
        run,
        "--task",
        "party=left",
        "--task",
        "t1",
        "--prompt",
        "the",
        "--max-new-tokens",
        2,
    )
    assert (code, "--- party=left" in out) == (0, True)
    assert call(bora.commands.export.main, run, tmp_path / "out", "--task", "party=left")[0] == 0
    model = restore(run).model
    row = model.adapters.names.index("party=left")
    first = next(iter(model.tasks["party=left"].values()))
    torch.testing.assert_close(
        first.A.flatten(), (model.adapters.mean + model.adapters.stored[row])[: first.A.numel()], rtol=0, atol=0
    )


def test_a_new_speaker_of_a_known_party_starts_from_it(run):
    restored = restore(run)
    old = restored.model.adapters
    table = pd.DataFrame({"task": ["new"] * 3 + ["other"] * 3, "text": ["the house asks for a vote"] * 6})
    documents = encode_documents(restored, table)
    values = {"party": ["left"] * 3 + ["green"] * 3, "year": ["2000"] * 3 + ["2000"] * 3}
    model = adapt(restored, documents.encoded, documents.tasks, 10.0, epochs=1, lr=1e-12, values=values)
    left, year = (old.stored[old.names.index(name)] for name in ("party=left", "year=2000"))
    torch.testing.assert_close(model.adapters.theta(0), old.mean + left + year, atol=1e-6, rtol=0)
    # Of a party that is new nothing is known but how much parties differ.
    torch.testing.assert_close(model.adapters.theta(1), old.mean + year, atol=1e-6, rtol=0)
    assert model.row_taus[:2].tolist() == pytest.approx([10, 1 / (1 / 10 + 1 / 100)])
    trained = adapt(restored, documents.encoded, documents.tasks, 10.0, epochs=3, lr=0.05, values=values)
    names = trained.adapters.names
    assert torch.equal(trained.adapters.stored[names.index("party=left")], left)  # held
    assert (trained.adapters.stored[:2] != 0).any()


def test_the_command_reads_the_levels_of_new_tasks(run, call, tmp_path):
    write_table(tmp_path / "new.csv", 2, first=10, n=4)
    code, out, err = call(bora.commands.adapt.main, run, tmp_path / "a", "--data", tmp_path / "new.csv", "--epochs", 1)
    assert (code, "has no column" in out) == (0, False), err
    restored = restore(tmp_path / "a")
    assert restored.model.adapters.levels.of_task == [[0, -1], [1, -1]]
    write_table(tmp_path / "old.csv", 2, first=10, n=4)
    pd.read_csv(tmp_path / "old.csv").drop(columns="party").to_csv(tmp_path / "old.csv", index=False)
    code, out, _ = call(bora.commands.adapt.main, run, tmp_path / "b", "--data", tmp_path / "old.csv", "--epochs", 1)
    assert (code, "has no column party" in out) == (0, True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("data.levels=[party] tau=[1,2,3]", ["3 values", "need 2"]),
        ("data.levels=[party] tau=inf", ["above 0 and finite"]),
        ("data.levels=[party,party]", ["party is there already"]),
        ("data.levels=[party] prior.penalty=norm", ["prior.penalty=gaussian"]),
        ("data.levels=[nope]", ["data.levels=nope", "no such column"]),
        ("data.levels=[task]", ["task is there already"]),
    ],
)
def test_levels_that_cannot_be_are_refused(command, tmp_path, settings, words):
    write_table(tmp_path / "t.csv", 3)
    arguments = f"data=table data.path=t.csv data.min_documents=5 logger=none {settings}".split()
    one_line(command(*arguments), *words)
