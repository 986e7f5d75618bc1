"""bora doctor reports the figures that the run then has."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from bora.commands import doctor
from bora.config.compose import compose_config
from bora.data.corpus import Corpus
from bora.lib import machine
from bora.model.loading import load_backbone
from bora.model.pretrained import load_packaged
from bora.train.build import build_data, build_model, load_corpus
from bora.train.cost import count_cost
from bora.use.restore import restore
from tests.conftest import one_line, table

SMALL = (
    "data=table data.path=t.csv data.n_tasks=3 data.min_documents=5 data.max_tokens=20 data.drop_duplicates=false "
    "logger=none trainer.max_epochs=2"
).split()
# One with buffers and Conv1D, one with a head that is not tied to the embeddings.
SHAPES = {
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=4096),
    "llama": LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=4096),
}


@pytest.fixture(autouse=True)
def work_folder(tmp_path, monkeypatch):
    """Work in a folder with a table, and restore HF_HUB_OFFLINE, which the command sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    table(tmp_path / "t.csv", {"Zoë": 30, "b": 24, "a task with a long name": 24})
    rows = pd.read_csv("t.csv")
    rows.assign(party=[f"{n % 4}" for n in range(len(rows))]).to_csv("t.csv", index=False)


@pytest.fixture
def report(call):
    """Run `bora doctor --json` and return what it prints."""

    def run(*words: str) -> dict:
        code, out, err = call(doctor.main, *words, "--json")
        assert (code, err, out.count("\n")) == (0, "", 1)
        return json.loads(out)

    return run


@pytest.mark.parametrize(
    "settings",
    [
        ["tau=100"],
        ["tau=0", "prior.estimator=dense", "lora.rank=2", "lora.target_modules=all-linear"],
        ["tau=inf", "trainer.accumulate_grad_batches=2", "data.batch_size=4", "trainer.limit_train_batches=4"],
        ["tau=[10,100]", "data.levels=[party]", "lora.rank=1", "optim.average=true"],
        ["tau=1", "prior.parameterization=centered", "trainer.max_steps=3", "model.dtype=bfloat16", "lora.rank=1"],
    ],
    ids=lambda settings: settings[0],
)
def test_the_figures_equal_those_of_the_run(report, command, settings):
    found = report(*SMALL, *settings)
    assert command(*SMALL, *settings, "hydra.run.dir=run")[0] == 0
    run = restore(Path("run"))
    adapters = list(run.model.adapters.parameters())
    assert found["frozen_parameters"] == sum(p.numel() for p in run.model.backbone.parameters())
    assert found["trained_parameters"] == sum(p.numel() for p in adapters)
    assert found["parameters_per_task"] == run.summary["params_per_task"]
    assert found["memory"]["theta"] == sum(p.nbytes for p in adapters)
    assert (found["tasks"], found["dtype"]) == (3, run.summary["dtype"])
    assert found["scored_tokens"] == run.summary["n_tokens"]
    columns = {"train": "n_train", "validation": "n_val", "test": "n_test"}
    assert found["documents"] == {split: run.directory.per_task()[column].sum() for split, column in columns.items()}
    cut, whole = run.summary["truncated_tokens"], load_corpus_of(settings).documents["n_tokens"].sum()
    assert found["truncated_share"] == pytest.approx(cut / (cut + whole))
    assert found["max_steps"] == run.summary["steps"]
    for name in ("best", "last"):
        file = Path(f"run/checkpoints/{name}.ckpt")
        assert found["checkpoint"] == pytest.approx(file.stat().st_size, rel=0.01)
    last = torch.load(file, weights_only=True)
    assert {value.dtype for value in last["state_dict"].values()} == {torch.float32}  # even over a bfloat16 backbone
    states = last["optimizer_states"][0]["state"].values()
    assert found["memory"]["moments"] == sum(s[m].nbytes for s in states for m in ("exp_avg", "exp_avg_sq"))
    assert found["memory"].get("averages", 0) == sum(s["average"].nbytes for s in states if "average" in s)


def load_corpus_of(settings: list[str]) -> Corpus:
    """Read the documents of a run with these settings."""
    cfg, _ = compose_config([*SMALL, *settings])
    return load_corpus(cfg, load_backbone(cfg.model, "cpu", 20, weights=False))


@pytest.mark.parametrize(("name", "estimator"), [("gpt2", "by_document"), ("llama", "dense")])
def test_the_memory_figures_equal_those_of_a_step(name, estimator):
    transformers.utils.logging.disable_progress_bar()
    AutoModelForCausalLM.from_config(SHAPES[name]).save_pretrained(name)
    load_packaged("opt_mini").tokenizer.save_pretrained(name)
    how = f"model=hub model.path={name} data.batch_size=60 prior.estimator={estimator}".split()
    cfg, _ = compose_config([*SMALL, *how])
    shape = load_backbone(cfg.model, "cpu", 20, weights=False)
    assert {p.device.type for p in shape.model.parameters()} == {"meta"}
    corpus = load_corpus(cfg, shape)
    memory = count_cost(cfg, shape, corpus).memory
    pretrained = load_backbone(cfg.model, "cpu", 20)
    data = build_data(cfg, pretrained, corpus)
    model = build_model(cfg, pretrained, corpus.task_names, data)
    objective = model.objective(next(iter(data.train_dataloader())))
    objective.loss.backward()
    grads = [p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in model.adapters.parameters()]
    assert memory["gradients"] == sum(g.nbytes for g in grads)
    weights = [*pretrained.model.parameters(), *pretrained.model.buffers()]
    assert memory["backbone"] == sum(t.nbytes for t in weights)


@pytest.mark.parametrize(
    ("interval", "validations", "tau"),
    [("null", 2, 100), ("0.2", 2 * 5, 100), ("7", 2 * 10 // 7, 100), ("null", 2, "learn")],
)
def test_measure_reports_times_and_peak_memory(report, interval, validations, tau):
    settings = f"trainer.accumulate_grad_batches=2 data.batch_size=4 trainer.val_check_interval={interval} tau={tau}"
    found = report(*SMALL, "--measure", *settings.split())
    assert found["batches"] == 10
    taken = found["measured"]
    assert 0 < taken["step_seconds"] < 10
    assert 0 < taken["validation_seconds"] < 10
    epoch = found["steps"] * taken["step_seconds"] + taken["validation_seconds"]
    assert taken["epoch_seconds"] == pytest.approx(epoch)
    # One more validation at the end, and three passes over as many test documents.
    passes = validations + 1 + 3 if tau == 100 else 4 * (validations + 1) + 7 + 3
    training = 2 * found["steps"] * taken["step_seconds"]
    assert taken["run_seconds"] == pytest.approx(training + passes * taken["validation_seconds"])
    tokens_a_step = found["scored_tokens"] / found["steps"]
    assert taken["tokens_per_second"] == pytest.approx(tokens_a_step / taken["step_seconds"], rel=0.2)
    held = sum(found["memory"].values()) - found["memory"]["logits_of_a_chunk"]
    assert held < taken["peak_memory"] < found["free_memory"]
    assert found["warnings"] == []


def test_a_step_that_does_not_fit_is_a_warning(report, call, monkeypatch):
    memory = machine.psutil.virtual_memory()._replace(available=2**20)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: memory)
    (warning,) = report(*SMALL)["warnings"]
    assert "1.00 MiB are free" in warning
    code, out, _ = call(doctor.main, *SMALL, "tau=inf")
    assert code == 0
    assert "\nwarning: a step needs " in out
    assert "table, opt_mini, τ = ∞" in out
    assert "│ frozen " in out
    assert "2,615,808 parameters, float32" in out
    free = [(2**30, 2**30), (2**21, 2**30)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # CUDA builds of torch trust device_count
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: free[i])
    assert "2.00 MiB are free" in report(*SMALL, "trainer=gpu", "model.dtype=float32")["warnings"][0]
    free.clear()
    assert "torch sees none" in report(*SMALL, "trainer=gpu", "model.dtype=float32")["warnings"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tau=-1"], "tau=-1 must be"),
        (["data.path=nowhere.csv"], "no such file"),
        (["model=hub", "model.path=no/model", "model.dtype=float32"], "can count its cost once bora run has"),
        (["data=talk_of_norway", "data.path=null"], "bora doctor downloads nothing"),
        (["trainer=gpu", "model.dtype=float32", "--measure"], "torch sees no GPU"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, monkeypatch, words, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    groups = {word.partition("=")[0] for word in words}
    settings = [word for word in SMALL if word.partition("=")[0] not in groups]
    one_line(call(doctor.main, *settings, *words, "--json"), message)


def test_again_reports_on_a_runs_overrides(report, command):
    assert command(*SMALL, "tau=inf", "hydra.run.dir=run")[0] == 0
    found, expected = report("--again", "run", "tau=3", "lora.rank=2"), report(*SMALL, "tau=3", "lora.rank=2")
    assert found | {"free_memory": 0} == expected | {"free_memory": 0}


@pytest.mark.processes
def test_the_hub_is_not_imported_before_it_is_put_offline():
    program = "import sys, bora.commands.doctor; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
