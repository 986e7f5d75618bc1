"""A run with levels above the task, from its table to a new speaker of a known party."""

import numpy as np
import pandas as pd
import pytest
import torch

import bora
import bora.commands.adapt
import bora.commands.evaluate
import bora.commands.export
import bora.commands.generate
import bora.commands.variance
from bora.bayes.levels import build_levels
from bora.config.compose import compose_config
from bora.data.batches import Documents
from bora.errors import UserError
from bora.model.batch import find_places
from bora.runs.corpus import split_documents
from bora.runs.directory import RunDirectory
from bora.train.run import train
from bora.use import curvature
from bora.use.adapt import adapt
from bora.use.evaluate import level_posteriors
from bora.use.new_tasks import encode_documents
from bora.use.restore import restore
from bora.use.score import perplexities
from tests.conftest import hierarchical, one_line, tiny_opt
from tests.data.inputs import corpus_of, data_group

WORDS = "the house speaker minister asks for a vote on this law today and tomorrow".split()


def write_table(path, tasks: int, first: int = 0, n: int = 20, **more) -> pd.DataFrame:
    rng = np.random.default_rng(first)
    parties, rows = ["left", "right"], []
    for t in np.repeat(range(first, first + tasks), n):
        year = str(2000 + rng.integers(3))
        rows.append((f"t{t}", parties[t % 2], year, " ".join(rng.choice(WORDS, rng.integers(3, 30)))))
    table = pd.DataFrame(rows, columns=["task", "party", "year", "text"]).assign(**more)
    table.to_csv(path, index=False)
    return table


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels")
    write_table(folder / "t.csv", 6)
    words = (
        f"data=table data.path={folder}/t.csv data.levels=[party,year] tau=[10,100,50] data.max_tokens=20 lora.rank=3"
    )
    config, _ = compose_config([*words.split(), "trainer.max_epochs=2", "optim.lr=0.02", "logger=none"])
    train(config, RunDirectory(folder / "run"), group="g", name="r")
    return folder / "run"


def test_the_runs_files_name_the_levels_and_their_units(run):
    units = pd.read_csv(run / "units.csv")
    assert units["level"].tolist() == ["party"] * 2 + ["year"] * 3
    assert set(units["unit"]) == {"left", "right", "2000", "2001", "2002"}
    assert units.groupby("level")["n_train"].sum().tolist() == [60, 60]
    assert (units["distance"] > 0).all()
    # A unit's effect is what its test documents lose without its deviation; a level's units have all test tokens.
    per_task, (tokens,) = pd.read_csv(run / "per_task.csv"), set(units.groupby("level")["test_tokens"].sum())
    assert tokens == per_task["test_tokens"].sum()
    restored = restore(run)
    model, levels = restored.model, restored.model.adapters.levels
    documents = RunDirectory(run).documents().query("split == 'test'")
    table = pd.read_csv(run.parent / "t.csv").loc[documents["row"]]
    encoded, _ = restored.tokens.encode(table)
    nats = dict.fromkeys(model.adapters.names, 0.0)  # the documents' loss without this deviation
    for document, row in zip(encoded, table.to_dict("records"), strict=True):
        names = [row["task"], *(f"{column}={row[column]}" for column in levels.columns)]
        own = [model.adapters.names.index(name) for name in names]
        batch = Documents([document], own[:1])[[0], 1]
        for left_out, name in zip([None, *own], [None, *names], strict=True):
            theta = model.adapters.mean + model.adapters.stored[[r for r in own if r != left_out]].sum(dim=0)
            nll = float(model.backbone.nll(batch, theta.detach()[None]))
            if name is None:
                whole = nll
            else:
                nats[name] += nll - whole
    effects = dict(zip(per_task["task"], per_task["own_effect"] * per_task["test_tokens"], strict=True))
    effects |= dict(zip(levels.names, units["effect"] * units["test_tokens"], strict=True))
    assert (units["level"] + "=" + units["unit"]).tolist() == levels.names
    assert effects == pytest.approx(nats, abs=1e-3)
    assert RunDirectory(run).summary()["levels"] == {"party": 100, "year": 50}
    assert RunDirectory(run).verify() == []


def test_curvature_is_measured_at_each_documents_own_theta(run, monkeypatch):
    restored, seen, gradients = restore(run), [], curvature._gradients

    def keep(backbone, batch, theta, whose):
        seen.append((batch["task"], batch["units"], theta.detach()))
        return gradients(backbone, batch, theta, whose)

    monkeypatch.setattr(curvature, "_gradients", keep)
    table = split_documents(restored.directory, "train").query("task == 't0' or task == 't3'")
    measured, _ = curvature.measure_curvature(restored, table, 8)
    adapters = restored.model.adapters
    assert len(measured) == 2
    assert {len(set(units[:, 1].tolist())) for _, units, _ in seen} & {2, 3}  # several years within a batch
    for task, units, theta in seen:
        expected = adapters.mean + adapters.stored[task] + adapters.stored[units].sum(dim=1)
        torch.testing.assert_close(theta, expected.detach())


def test_units_can_generate_and_be_exported(run, call, tmp_path):
    how = "--task party=left --task t1 --prompt the --max-new-tokens 2".split()
    code, out, _ = call(bora.commands.generate.main, run, *how)
    assert (code, "--- party=left" in out) == (0, True)
    assert call(bora.commands.export.main, run, tmp_path / "out", "--task", "party=left")[0] == 0
    model = restore(run).model
    row = model.adapters.names.index("party=left")
    first = next(iter(model.tasks["party=left"].values()))
    theta = model.adapters.mean + model.adapters.stored[row]
    assert torch.equal(first.A.flatten(), theta[: first.A.numel()])


def test_a_new_speaker_of_a_known_party_starts_at_its_deviation(run):
    restored = restore(run)
    old = restored.model.adapters
    table = pd.DataFrame({"task": ["new"] * 3 + ["other"] * 3, "text": ["the house asks for a vote"] * 6})
    table = table.assign(**{"level:party": ["left"] * 3 + ["green"] * 3, "level:year": "2000"})
    documents = encode_documents(restored, table)
    model, _ = adapt(restored, documents, 10.0, epochs=1, lr=1e-12)
    left, year = (old.stored[old.names.index(name)] for name in ("party=left", "year=2000"))
    torch.testing.assert_close(model.adapters.theta(0), old.mean + left + year, atol=1e-6, rtol=0)
    empty = encode_documents(restored, table.assign(**{"level:party": ""}))
    partyless, _ = adapt(restored, empty, 10.0, epochs=1, lr=1e-12)
    assert partyless.adapters.levels.of_task[0][0] == 2  # (other), since the run has no (none)
    # About a new party only the variance between parties is known.
    torch.testing.assert_close(model.adapters.theta(1), old.mean + year, atol=1e-6, rtol=0)
    assert model.row_taus[:2].tolist() == pytest.approx([10, 1 / (1 / 10 + 1 / 100)])
    trained, _ = adapt(restored, documents, 10.0, epochs=3, lr=0.05)
    names = trained.adapters.names
    assert torch.equal(trained.adapters.stored[names.index("party=left")], left)  # stays fixed
    assert (trained.adapters.stored[:2] != 0).any()


def test_the_command_reads_the_levels_of_new_tasks(run, call, tmp_path):
    write_table(tmp_path / "new.csv", 2, first=10, n=4)
    code, out, err = call(bora.commands.adapt.main, run, tmp_path / "a", "--data", tmp_path / "new.csv", "--epochs", 1)
    assert (code, "new" in out.replace("new tasks", "")) == (0, False), err
    restored = restore(tmp_path / "a")
    assert restored.model.adapters.levels.of_task == [[0, -1], [1, -1]]
    write_table(tmp_path / "old.csv", 2, first=10, n=4)
    pd.read_csv(tmp_path / "old.csv").drop(columns="party").to_csv(tmp_path / "old.csv", index=False)
    code, out, _ = call(bora.commands.adapt.main, run, tmp_path / "b", "--data", tmp_path / "old.csv", "--epochs", 1)
    assert (code, "party: not in the table" in out) == (0, True)


def test_a_frame_trains_levels_as_its_table_does(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = pd.read_csv(run.parent / "t.csv")
    how = {"levels": ["party", "year"], "tau": [10, 100, 50], "max_tokens": 20, "max_epochs": 2, "lr": 0.02, "rank": 3}
    found = bora.fit(frame, **how, output="frame")
    for name in ("per_task.csv", "units.csv"):
        assert (tmp_path / "frame" / name).read_text() == (run / name).read_text()
    new = write_table(tmp_path / "new.csv", 2, first=10, n=4)
    assert found.adapt(new, "new", epochs=1).model.adapters.levels.of_task == [[0, -1], [1, -1]]
    with pytest.raises(UserError, match=r"^levels=nope: there is no such column; the table has task, party, year, te"):
        bora.fit(frame, levels=["nope"])


def test_the_cells_of_levels_are_part_of_the_datas_hash(tmp_path):
    first = write_table(tmp_path / "t.csv", 2)
    first.assign(party=["right"] + ["left"] * (len(first) - 1)).to_csv(tmp_path / "other.csv", index=False)
    tables = [data_group(path=str(tmp_path / name), levels=["party"]) for name in ("t.csv", "other.csv")]
    assert len({corpus_of(data).sha256 for data in tables}) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("data.levels=[party] tau=[1,2,3]", ["3 values", "need 2"]),
        ("data.levels=[party] tau=inf", ["above 0 and finite"]),
        ("data.levels=[party] tau=learn", ["data.levels=party: 2 units are too few", "tau=[100,1000]"]),
        ("data.levels=[party,party]", ["party is named twice"]),
        ("data.levels=[party] prior.penalty=norm", ["prior.penalty=gaussian"]),
        ("data.levels=[nope]", ["data.levels=nope: there is no such column; the table has task, party, year"]),
        ("data.levels=[task]", ["task is named twice"]),
        ("data.levels=[text]", ["text is the document itself"]),
    ],
)
def test_impossible_levels_are_refused(command, tmp_path, settings, words):
    write_table(tmp_path / "t.csv", 3)
    arguments = f"data=table data.path=t.csv data.min_documents=5 logger=none {settings}".split()
    one_line(command(*arguments), *words)


def test_a_speaker_who_changed_parties_is_under_several_in_the_posterior_of_parties():
    tasks = [0, 0, 1, 2, 2, 3]
    levels, _ = build_levels({"party": ["a", "b", "a", "b", "b", "c"]}, tasks, [True] * 6, [1.0])
    posterior = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    names, of_task, found = level_posteriors(levels, posterior)["party"]
    assert names.tolist() == ["a", "b", "c", "(several)"]
    assert of_task.tolist() == [3, 0, 1, 2]
    np.testing.assert_allclose(found, [[0.2, 0.3, 0.4, 0.1], [0.1, 0.1, 0.1, 0.7]])


def test_spellings_of_units_are_merged_and_unknown_units_are_reported(run, call, command, tmp_path):
    table = write_table(tmp_path / "t.csv", 4)
    table.loc[table["task"] == "t0", "party"] = " left  "
    table.assign(year=table["year"].where(table["task"] == "t0", "2000")).to_csv(tmp_path / "t.csv", index=False)
    small = "data=table data.path=t.csv data.min_documents=5 data.max_tokens=9 trainer.max_steps=1 logger=none".split()
    assert command(*small, "data.levels=[party]", "hydra.run.dir=a")[0] == 0
    assert pd.read_csv(tmp_path / "a/units.csv")["unit"].tolist() == ["left", "right"]
    write_table(tmp_path / "new.csv", 2, first=10, n=4, year="2031")
    code, out, err = call(bora.commands.adapt.main, run, tmp_path / "b", "--data", tmp_path / "new.csv", "--epochs", 1)
    assert (code, "year: 1 units are new to the run; their deviation is taken as 0 (2031)" in out) == (0, True), err
    one_line(call(bora.commands.variance.main, tmp_path / "b", "--by", "party"), "was made by bora adapt")
    table.replace({"task": {"t0": "party=left"}}).to_csv(tmp_path / "t.csv", index=False)
    one_line(command(*small, "data.levels=[party]"), "party=left is the name of a task and of a unit")


def test_a_partys_posterior_is_the_sum_of_its_speakers(run, call, tmp_path):
    columns = ("--likelihoods", "csv", "--include-trained", "--out", tmp_path / "e")
    code, out, err = call(bora.commands.evaluate.main, run, "--data", run.parent / "t.csv", *columns)
    assert (code, "likeliest party: accuracy" in out, "likeliest year" in out) == (0, True, False), err
    documents = pd.read_csv(tmp_path / "e/documents.csv")
    nats = pd.read_csv(tmp_path / "e/likelihoods.csv").pivot(index="row", columns="task", values="log_likelihood")
    scaled = nats / restore(run).temperature
    p = np.exp(scaled.sub(np.logaddexp.reduce(scaled.to_numpy(), axis=1), axis=0))
    left = p[["t0", "t2", "t4"]].sum(axis=1)
    np.testing.assert_allclose(documents["party_posterior"], np.maximum(left, 1 - left), rtol=1e-5)
    assert (documents["best_party"] == np.where(left > 0.5, "left", "right")).all()


def test_a_tau_is_learned_for_each_level(tmp_path):
    rng = np.random.default_rng(0)
    parties, rows = [("left", "tax cut"), ("right", "old ship"), ("centre", "sea")], []
    for t in np.repeat(range(9), 20):
        party, theirs = parties[t % 3]
        rows.append((f"t{t}", party, " ".join([*rng.choice(WORDS, 3), *[theirs] * 3, f"t{t}"])))
    pd.DataFrame(rows, columns=["task", "party", "text"]).to_csv(tmp_path / "t.csv", index=False)
    words = f"data=table data.path={tmp_path}/t.csv data.levels=[party] tau=learn data.max_tokens=20 logger=none"
    config, _ = compose_config([*words.split(), "trainer.max_epochs=12", "optim.lr=0.005", "lora.rank=3"])
    train(config, RunDirectory(tmp_path / "run"), group="g", name="r")
    summary, run = RunDirectory(tmp_path / "run").summary(), restore(tmp_path / "run")
    party = summary["learned"]["levels"]["party"]
    assert 0 < summary["tau"] < np.inf
    assert party["tau_interval"][0] <= party["tau"] <= party["tau_interval"][1]
    assert party["c_interval"][0] <= party["c"] <= party["c_interval"][1]
    assert summary["levels"] == {"party": party["tau"]}
    assert run.model.adapters.levels.taus == [party["tau"]]
    assert run.model.tau == summary["tau"] == summary["learned"]["tau"]
    # Scored again from its folder, the run has the summary's perplexity, which is below that of Θ.
    documents = RunDirectory(tmp_path / "run").documents().query("split == 'test'")
    _, again = perplexities(run, pd.read_csv(tmp_path / "t.csv").loc[documents["row"]], 8)
    assert again["perplexity"] == pytest.approx(summary["test_perplexity"], rel=1e-5)
    assert again["perplexity"] < again["mean_model_perplexity"]


def test_one_part_of_theta_can_be_scaled_alone():
    levels, units = build_levels({"party": ["l", "l", "r"]}, [0, 1, 2], [True] * 3, [1.0])
    model = hierarchical(tiny_opt(), ["a", "b", "c"], [4] * 3, 30, "learn", levels=levels)
    adapters = model.adapters
    with torch.no_grad():
        adapters.stored.normal_()
    places = find_places(torch.tensor([0, 2]), torch.tensor([units[0], units[2]]))
    task, party = adapters.stored[[0, 2]], adapters.stored[[3, 4]]
    for part, expected in ((None, 0.5 * (task + party)), (0, 0.5 * task + party), (1, task + 0.5 * party)):
        adapters.part = part
        torch.testing.assert_close(adapters.shrunk_rows(places, torch.float32, 0.5), adapters.mean + expected)
