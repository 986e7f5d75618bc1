"""What a run cannot be restored from is named. test_evaluate.py holds a restored model to the run's own figures."""

import shutil

import pytest

from bora.errors import UserError
from bora.use.restore import restore


def test_what_is_not_there_is_named(trained, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no finished run"):
        restore(tmp_path)
    run = trained("tau=100")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees no CUDA device"):
        restore(run, "cuda")
    with pytest.raises(UserError, match=r"no task a lnger name; did you mean a longer name\?"):
        restore(run).find_tasks(["a", "a lnger name"])
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    gone = config.read_text().replace("source: packaged", "source: hub").replace("asset: opt_mini", "path: ./nowhere")
    config.write_text(gone)
    with pytest.raises(UserError, match=r"^model.path=./nowhere: there is no such folder$"):
        restore(tmp_path / "run")


def test_a_task_is_found_by_a_beginning_that_no_other_has(trained):
    restored = restore(trained("tau=100"))  # of the tasks a, "a longer name", "../b | <i>*x*"
    assert restored.find_tasks(["a", "a longer name"]) == ["a", "a longer name"]
    assert restored.find_tasks(["a l", "A", "A LONG", "../", "a l"]) == [
        *("a longer name", "a", "a longer name", "../b | <i>*x*", "a longer name")
    ]
    with pytest.raises(UserError, match=r"^'' is the beginning of several tasks: .*a longer name"):
        restored.find_tasks([""])
    with pytest.raises(UserError, match=r"^the run has no task b; did you mean|^the run has no task b; it has"):
        restored.find_tasks(["b"])
