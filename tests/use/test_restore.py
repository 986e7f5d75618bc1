"""Restoring a run names what is missing. test_evaluate.py compares a restored model with the run's own figures."""

import json
import shutil

import pytest

from bora.errors import UserError
from bora.model.pretrained import load_packaged
from bora.use.restore import restore
from tests.conftest import table
from tests.model.test_pretrained import DIGITS_APART


def test_missing_runs_devices_tasks_and_models_are_named(trained, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no finished run"):
        restore(tmp_path)
    run = trained("tau=100")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no CUDA device"):
        restore(run, "cuda")
    with pytest.raises(UserError, match="device='gpu0': give cpu or cuda"):
        restore(run, "gpu0")
    with pytest.raises(UserError, match="dtype='float16': give float32, bfloat16"):
        restore(run, dtype="float16")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"no task a lnger name; did you mean a longer name\?"):
        restore(run).find_tasks(["a", "a lnger name"])
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    gone = config.read_text().replace("source: packaged", "source: hub").replace("asset: opt_mini", "path: ./nowhere")
    config.write_text(gone)
    with pytest.raises(UserError, match=r"^model.path=./nowhere: there is no such folder$"):
        restore(tmp_path / "run")


def test_a_model_at_a_relative_path_is_found_from_elsewhere_and_its_tokenizer_is_checked(
    command, tmp_path, monkeypatch
):
    table(tmp_path / "t.csv", {"a": 20, "b": 20})
    opt = load_packaged("opt_mini")
    opt.model.save_pretrained(tmp_path / "models/chat")
    opt.tokenizer.save_pretrained(tmp_path / "models/chat")
    settings = "data=table", "data.path=t.csv", "data.min_documents=5", "data.max_tokens=20", "trainer.max_steps=1"
    code, _, _ = command("model=hub", "model.path=models/chat", "hydra.run.dir=run", "logger=none", *settings)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    warned: list[str] = []
    monkeypatch.setattr("bora.use.restore.log.warning", lambda text, *values: warned.append(text % values))
    assert (code, restore("../run").cfg.model.path) == (0, str((tmp_path / "models/chat").resolve()))
    assert not warned
    file = tmp_path / "models/chat/tokenizer.json"
    digits_apart = {"type": "Sequence", "pretokenizers": DIGITS_APART}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pre_tokenizer": digits_apart}))
    restore("../run")
    (line,) = warned
    assert line.startswith("the tokenizer differs from the one that ../run was trained with")


def test_a_task_is_found_by_an_unambiguous_beginning(trained):
    restored = restore(trained("tau=100"))  # with the tasks a, "a longer name", "../b | <i>*x*"
    assert restored.find_tasks(["a", "a longer name"]) == ["a", "a longer name"]
    assert restored.find_tasks(["a l", "A", "A LONG", "../", "a l"]) == [
        *("a longer name", "a", "a longer name", "../b | <i>*x*", "a longer name")
    ]
    with pytest.raises(UserError, match=r"^'' matches several tasks: .*a longer name"):
        restored.find_tasks([""])
    with pytest.raises(UserError, match=r"^the run has no task b; did you mean|^the run has no task b; it has"):
        restored.find_tasks(["b"])
