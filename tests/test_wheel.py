"""The built wheel, installed in another environment, runs from another directory."""

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

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
    other = tmp_path / "venv"
    venv.create(other, with_pip=False)
    python = other / "bin/python"
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    )
    # The dependencies are this environment's; bora itself comes from the wheel alone.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        "--force-reinstall",
        "--quiet",
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    small = [
        "data.modules=[pickle,ssl]",
        "data.documents_per_task=9",
        "data.min_documents=3",
        "trainer.max_steps=1",
        "logger=none",
        "hydra.run.dir=run",
    ]
    where = subprocess.run(
        [python, "-c", "import bora; print(bora.__file__)"], cwd=elsewhere, capture_output=True, text=True, check=True
    )
    assert where.stdout.startswith(str(site))
    subprocess.run([other / "bin/bora", "run", *small], cwd=elsewhere, check=True, capture_output=True)
    assert json.loads((elsewhere / "run/summary.json").read_text())["steps"] == 1
