"""A run that an older bora finished is read as if it had the settings added since, at their defaults."""

import pytest
import yaml

from bora.config.schema import flatten
from bora.errors import UserError
from bora.runs.archive import read_archive, read_run, write_archive
from bora.runs.directory import CONFIG, SUMS, RunDirectory
from bora.runs.older import newer_settings
from bora.runs.values import hash_file
from tests.runs.test_directory import RUN

GIVEN = {"tau", "logger.kind", "data.modules", "data.documents_per_task", "data.min_documents", "trainer.max_steps"}
NEEDED = {"name", "data.source", "model.source"}  # derived from others, or deciding which settings exist


def without(values: dict, key: str) -> dict:
    group, _, rest = key.partition(".")
    return {k: without(v, rest) if k == group else v for k, v in values.items() if k != group or rest}


def test_a_setting_newer_than_a_finished_run_has_its_default(command, tmp_path):
    assert command(*RUN)[0] == 0
    run = RunDirectory(tmp_path / "run")
    config, sums = run.config(), run.path / SUMS
    settings, written = config.model_dump(), hash_file(run.path / CONFIG)
    keys = flatten(settings).keys() - GIVEN - NEEDED
    assert len(keys) > 60
    for key in sorted(keys):
        (run.path / CONFIG).write_text(yaml.safe_dump(without(settings, key)))
        with pytest.raises(UserError, match=f"{key} is needed"):  # it may have been lost
            run.config()
        now = hash_file(run.path / CONFIG)
        sums.write_text(sums.read_text().replace(written, now))
        written = now
        assert run.config() == config, key
    assert command(*RUN)[0] == 0  # the run is recognised and finished
    write_archive(tmp_path / "runs.csv.gz", [read_run(run.path)])
    assert read_archive(tmp_path / "runs.csv.gz")[0].config == flatten(settings)


def test_newer_settings_leave_out_open_dictionaries_and_required_settings():
    own = {"data.source": "table", "model.source": "random", "logger.kind": "none", "trainer.extra.max_time": "01:00"}
    newer = newer_settings(own | {"model.config.model_type": "llama"})
    assert [newer[key] for key in ("lora.dropout", "data.split.seed", "optim.eps")] == [0, 0, 1e-8]
    assert not any(key.startswith(("trainer.extra", "model.config", "hydra")) or "defaults" in key for key in newer)
    assert not {"data.path", "name", "model.package"} & newer.keys()
