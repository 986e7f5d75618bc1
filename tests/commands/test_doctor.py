"""What bora doctor tells is what a run then has; and telling it leaves nothing behind."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from bora.commands.show import show_machine
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig

from bora.commands import doctor
from bora.data.module import TaskDataModule
from bora.lib import machine
from bora.lib.console import duration, size
from bora.model.loading import load_backbone
from bora.model.pretrained import load_packaged
from bora.train.cost import Cost, cost
from bora.train.run import build_data, build_model, load_corpus
from bora.use.restore import restore
from tests.conftest import table
from tests.test_config import config

SMALL = [
    "data=table",
    "data.path=t.csv",
    "data.min_documents=5",
    "data.max_tokens=20",
    "data.drop_duplicates=false",
    "logger=none",
    "trainer.max_epochs=2",
]
# Small shapes of three architectures: with and without tied weights, with buffers, with Conv1D.
SHAPES = {
    "opt": OPTConfig(
        hidden_size=32, word_embed_proj_dim=16, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=4096
    ),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=4096),
    "llama": LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        vocab_size=4096,
        tie_word_embeddings=False,
    ),
}


def saved(name: str) -> list[str]:
    """Save a model of such a shape; the settings that choose it."""
    transformers.utils.logging.disable_progress_bar()
    AutoModelForCausalLM.from_config(SHAPES[name]).save_pretrained(name)
    transformers.utils.logging.enable_progress_bar()
    load_packaged("opt_mini").tokenizer.save_pretrained(name)
    return ["model=hub", f"model.path={name}"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with a table and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BORA_CACHE", str(tmp_path / "cache"))
    table(tmp_path / "t.csv", {"Zoë": 30, "b": 24, "a task with a long name": 24})


@pytest.fixture
def told(call):
    """What `bora doctor --json` prints."""

    def run(*overrides: str) -> dict:
        code, out, err = call(doctor.main, *SMALL, *overrides, "--json")
        assert (code, err, out.count("\n")) == (0, "", 1)
        return json.loads(out)

    return run


@pytest.mark.parametrize(
    "settings",
    [
        ["tau=100"],
        ["tau=0", "prior.estimator=dense", "lora.rank=2", "lora.target_modules=all-linear"],
        ["tau=inf", "lora.rank=3", "trainer.accumulate_grad_batches=2", "data.batch_size=4"],
        ["tau=10", "+trainer.limit_train_batches=3", "trainer.accumulate_grad_batches=2", "data.batch_size=4"],
        ["tau=1", "prior.parameterization=centered", "trainer.max_steps=3", "model.dtype=bfloat16", "llama"],
    ],
    ids=lambda settings: settings[0],
)
def test_a_run_is_as_it_was_told(told, command, settings):
    if settings[-1] in SHAPES:
        settings = settings[:-1] + saved(settings[-1])
    found = told(*settings)["cost"]
    assert command(*SMALL, *settings, "hydra.run.dir=run")[0] == 0
    run = restore(Path("run"))
    assert found["parameters"] == sum(p.numel() for p in run.model.parameters())
    assert found["backbone_parameters"] == sum(p.numel() for p in run.model.backbone.parameters())
    adapters = list(run.model.adapters.parameters())
    assert found["trainable_parameters"] == sum(p.numel() for p in adapters)
    assert found["params_per_task"] == run.model.n_parameters == run.summary["params_per_task"]
    assert found["memory"]["theta"] == sum(p.nbytes for p in adapters)
    assert (found["n_tasks"], found["parameterization"]) == (3, run.summary["parameterization"])
    assert (found["dtype"], found["attention"]) == (run.summary["dtype"], run.summary["attention"])
    assert found["scored_tokens"] == run.per_task["train_tokens"].sum() == run.summary["n_tokens"]
    assert found["truncated_tokens"] == run.summary["truncated_tokens"]
    columns = {"train": "n_train", "validation": "n_val", "test": "n_test"}
    assert found["documents"] == {split: run.per_task[column].sum() for split, column in columns.items()}
    assert found["max_steps"] == run.summary["steps"]
    files = [Path(f"run/checkpoints/{name}.ckpt") for name in ("best", "last")]
    for file in files:
        assert found["checkpoint"] == pytest.approx(file.stat().st_size, rel=0.02)
    state = torch.load(files[0], weights_only=True)["optimizer_states"][0]["state"].values()
    assert found["memory"]["moments"] == sum(s[m].nbytes for s in state for m in ("exp_avg", "exp_avg_sq"))


def test_a_run_that_would_be_done_again_is_told(told, command, call):
    table(Path("t.csv"), {"a": 12, "b": 15})
    assert command(*SMALL, "tau=inf", "hydra.run.dir=run")[0] == 0
    code, out, err = call(doctor.main, "--json", "--again", "run", "tau=3", "lora.rank=2")
    assert (code, err) == (0, "")
    assert json.loads(out)["cost"] == told(*SMALL, "tau=3", "lora.rank=2")["cost"]
    code, _, err = call(doctor.main, "--again", "nowhere")
    assert code == 2
    assert err.startswith("bora: nowhere/config.yaml is not readable")


@pytest.mark.parametrize(("names", "rank"), [(3, 1), (120, 1), (120, 16)])
def test_a_checkpoints_size_holds_for_many_tasks_and_ranks(told, command, names, rank):
    sizes = {f"task number {i}": 8 for i in range(names)}
    table(Path("t.csv"), sizes)
    settings = ["data.n_tasks=null", f"lora.rank={rank}", "data.max_tokens=6", "trainer.max_steps=1", "logger=wandb"]
    expected = told(*settings)["cost"]["checkpoint"]
    assert command(*SMALL, *settings, "hydra.run.dir=run")[0] == 0
    assert expected == pytest.approx(Path("run/checkpoints/last.ckpt").stat().st_size, rel=0.02)


def real(*settings: str):
    """The config, its model and a batch of all its tasks, as a run has them; and their cost, told before."""
    cfg = config(*SMALL, *settings)
    shape = load_backbone(cfg.model, "cpu", 20, weights=False)
    assert {p.device.type for p in shape.model.parameters()} == {"meta"}
    corpus = load_corpus(cfg, shape)
    found = cost(cfg, shape.model, corpus)
    pretrained = load_backbone(cfg.model, "cpu", 20)
    data = build_data(cfg, pretrained, corpus)
    return found, pretrained.model, build_model(cfg, pretrained, corpus.task_names, data), data


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_the_models_own(name):
    found, model, *_ = real(*saved(name), "model.dtype=bfloat16")
    whole = [*model.parameters(), *model.buffers()]
    assert found.memory["backbone"] == sum(t.nbytes for t in whole)
    assert found.backbone_parameters == sum(p.numel() for p in model.parameters())
    assert found.dtype == str(model.dtype).removeprefix("torch.")


@pytest.mark.parametrize("estimator", ["by_document", "dense"])
def test_gradients_are_as_large_as_told(estimator):
    found, _, model, data = real(f"prior.estimator={estimator}", "data.batch_size=60")
    model.objective(next(iter(data.train_dataloader()))).loss.backward()
    grads = [p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in model.adapters.parameters()]
    assert found.memory["gradients"] == sum(g.nbytes for g in grads)


def files(folder: Path) -> dict[Path, int]:
    return {f: f.stat().st_mtime_ns for f in folder.rglob("*")}


@pytest.mark.parametrize("data", ["table", "stdlib", "datasets"])
def test_nothing_is_written(call, tmp_path, monkeypatch, data):
    import datasets

    home = tmp_path / "huggingface"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home)
    (tmp_path / "folder").mkdir()
    (tmp_path / "t.csv").rename(tmp_path / "folder/train.csv")
    path = {"table": ["data.path=folder/train.csv"], "datasets": ["data.path=folder"], "stdlib": []}[data]
    settings = [s for s in SMALL if not s.startswith("data.path") and s != "data=table"]
    before = files(tmp_path)
    code, out, _ = call(doctor.main, f"data={data}", *settings, *path, "data.documents_per_task=20", "--measure")
    assert code == 0
    assert f"\n{data}, opt_mini, τ = 100" in out
    assert files(tmp_path) == before


def test_not_even_what_libraries_keep_is_written(tmp_path):
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    named = {"HOME": str(home), "TMPDIR": str(scratch), "BORA_CACHE": str(home / "bora")}
    apart = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME")
    done = subprocess.run(
        [sys.executable, "-m", "bora.commands.doctor", *SMALL, "--measure", "--json"],
        check=False,
        capture_output=True,
        env={k: v for k, v in os.environ.items() if k not in apart} | named,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert [*home.rglob("*"), *scratch.rglob("*")] == []


def test_measuring_leaves_the_test_documents_alone(told, monkeypatch):
    monkeypatch.setattr(TaskDataModule, "test_dataloader", lambda self: pytest.fail("the test split was read"))
    found = told("--measure", "data.batch_size=2")["cost"]
    taken = found["measured"]
    assert taken["batches"] == found["batches"] - 2  # two are not timed
    assert taken["batch_seconds"] > 0 < taken["validation_seconds"]
    assert taken["epoch_seconds"] == pytest.approx(
        found["batches"] * taken["batch_seconds"] + taken["validation_seconds"]
    )
    rest = taken["run_seconds"] - 2 * taken["epoch_seconds"]  # one more validation, and twice as many test documents
    assert rest == pytest.approx(3 * taken["validation_seconds"])
    assert taken["peak_memory"] > found["memory_in_all"] - found["memory"]["logits_of_a_chunk"]
    assert told("--measure", "data.batch_size=60")["cost"]["measured"]["batches"] == 1  # all that there is


def test_what_is_printed_can_be_read(call):
    code, out, err = call(doctor.main, *SMALL, "tau=inf")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 120
    for row in ("processor", "memory", "disk for runs"):
        assert f"\n│ {row} " in out
    for row in ("backbone", "trained", "an epoch", "at most", "checkpoints", "memory of a step", "time"):
        assert f"\n│ {row} " in out
    assert "D = 3 tasks sharing Θ" in out
    assert "2,615,808 parameters, float32" in out


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tau=-1", "tau=-1 must be"),
        ("data.pth=x", "data.pth"),
        ("tau=0,1", "tau=0,1"),
        ("model=none", "model/none"),
        ("data.path=nowhere.csv", "no such file"),
        ("lora.target_modules=[x]", "matches no linear layer"),
        ("model=opt_125m", "model.path=facebook/opt-125m: it is no folder, and not in the hub's cache"),
        ("data=talk_of_norway", "once bora run has downloaded it"),
        ("init_from=nowhere", "no finished run in"),
        ("model.dtype=float16", "model.dtype=float16"),
        ("data.text=speech", "data.text=speech"),
    ],
)
def test_a_bad_config_ends_in_one_line(call, override, words):
    settings = [s for s in SMALL if not (override == "data=talk_of_norway" and "data" in s)]
    for form in ([], ["--json"]):
        code, _, err = call(doctor.main, *settings, override, *form)
        assert (code, err.count("\n"), err[:6]) == (2, 1, "bora: ")
        assert words in err


def test_what_will_go_wrong_is_told(told):
    found = told()
    little = found["machine"] | {
        "memory": {"total": 2**34, "free": 2**20},
        "disk": [{"of": "runs", "folder": "/", "free": 2**20}],
        "gpus": [],
    }
    assert found["look_out"] == ["data.n_tasks=25, but only 3 tasks can be chosen: all are taken"]
    cfg = config(*SMALL)
    lines = doctor.look_out(cfg, little, found["cost"])
    assert [line.split()[0] for line in lines] == ["a", "checkpoints"]
    lines = doctor.look_out(config(*SMALL, "trainer=gpu"), little, found["cost"])
    assert ["GPU" in lines[0], "checkpoints" in lines[1]] == [True] * 2
    small = found["machine"] | {"gpus": [{"name": "x", "memory": 2**30, "free": 2**20, "bfloat16": True}]}
    assert "a step needs" in doctor.look_out(config(*SMALL, "trainer=gpu"), small, found["cost"])[0]


def test_gpus_are_told_with_their_free_memory(monkeypatch, capfd, told):
    found = told()["machine"]
    cuda = {
        "device_count": lambda: 2,
        "mem_get_info": lambda i: ((i + 1) * 2**30, 80 * 2**30),
        "device": lambda i: nullcontext(),
        "is_bf16_supported": lambda including_emulation: True,
        "get_device_name": lambda i: f"Card {i}",
    }
    for name, stand_in in cuda.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    cards = machine.gpus()
    assert [(c["name"], c["free"], c["memory"]) for c in cards] == [
        ("Card 0", 2**30, 80 * 2**30),
        ("Card 1", 2**31, 80 * 2**30),
    ]
    show_machine(found | {"gpus": cards})
    lines = [line for line in capfd.readouterr().out.splitlines() if "Card" in line]
    assert ["1.00 GiB are free" in lines[0], "2.00 GiB are free" in lines[1], "80.0 GiB" in lines[1]] == [True] * 3


def test_the_machine_is_told_as_the_system_has_it():
    total, free = machine.memory()
    assert 0 < free < total
    assert machine.cores() <= os.cpu_count()
    assert machine.free_disk(Path("not/there/yet")) > 0


def test_sizes_and_durations():
    assert [size(n) for n in (0, 999, 1000, 2**20, 1.5 * 2**30, 153.4 * 2**30)] == [
        "0 B",
        "999 B",
        "0.98 KiB",
        "1.00 MiB",
        "1.50 GiB",
        "153 GiB",
    ]
    assert [duration(s) for s in (0.123, 9, 45, 130, 3600, 12000, 180000)] == [
        "0.12 s",
        "9 s",
        "45 s",
        "2 min 10 s",
        "1 h",
        "3 h 20 min",
        "2 d 2 h",
    ]


def test_the_cost_is_plain_values(told):
    assert set(told()["cost"]) >= set(Cost.__dataclass_fields__)
    assert pd.Series(told()["machine"]["versions"]).map(type).eq(str).all()
