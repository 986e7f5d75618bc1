"""The built wheel, installed in another environment, runs from another directory."""

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_configs_and_assets_travel_inside(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f.relative_to(REPOSITORY).as_posix() for f in (REPOSITORY / "conf").rglob("*.yaml")}
    assert {f"bora/{c}" for c in configs} <= names
    assert {"bora/assets/opt_mini/model.safetensors", "bora/assets/opt_mini/tokenizer.json"} <= names
    assert all(n.split("/")[0] in ("bora", f"bora-{wheel.name.split('-')[1]}.dist-info") for n in names)
    assets = [i for i in zipfile.ZipFile(wheel).infolist() if "/assets/" in i.filename]
    assert sum(i.file_size for i in assets) < 10e6


def test_it_runs_elsewhere(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python, elsewhere = tmp_path / "venv/bin/python", tmp_path / "elsewhere"
    elsewhere.mkdir()

    def ask(*words: str) -> str:
        done = subprocess.run(words, cwd=elsewhere, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    site = Path(ask(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    # The dependencies are this environment's; bora itself comes from the wheel alone.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = "install --no-deps --no-index --force-reinstall --quiet".split()
    ask(sys.executable, "-m", "pip", "--python", str(python), *install, str(wheel))
    small = "data.modules=[pickle,ssl] data.documents_per_task=9 data.min_documents=3 trainer.max_steps=1 logger=none"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)  # of a checkout
        assert ask(str(python), "-c", "import bora; print(bora.__file__)").startswith(str(site))
        ask(str(tmp_path / "venv/bin/bora"), "run", *small.split(), "hydra.run.dir=run")
    assert json.loads((elsewhere / "run/summary.json").read_text())["steps"] == 1
