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


def test_the_wheel_contains_configs_and_assets(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f.relative_to(REPOSITORY).as_posix() for f in (REPOSITORY / "conf").rglob("*.yaml")}
    assert {f"bora/{c}" for c in configs} <= names
    assert {"bora/assets/opt_mini/model.safetensors", "bora/assets/opt_mini/tokenizer.json"} <= names
    assert {n.split("/")[0] for n in names} == {"bora", f"bora_lora-{wheel.name.split('-')[1]}.dist-info"}
    assets = [i for i in zipfile.ZipFile(wheel).infolist() if "/assets/" in i.filename]
    assert sum(i.file_size for i in assets) < 10e6


def test_the_wheel_runs_elsewhere_and_says_what_to_install(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python, elsewhere = tmp_path / "venv/bin/python", tmp_path / "elsewhere"
    elsewhere.mkdir()

    def ask(*words: str, code: int = 0) -> str:
        done = subprocess.run(words, cwd=elsewhere, check=False, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return (done.stderr if code else done.stdout).strip()

    # The dependencies are this environment's, except for PEFT; bora itself comes only from the wheel.
    dependencies = tmp_path / "dependencies"
    dependencies.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("peft", "bora", "_bora", "__editable__")):
            (dependencies / entry.name).symlink_to(entry)
    site = Path(ask(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    ask(*pip, "--no-deps", "--no-index", str(wheel))
    small = "data.modules=[pickle,ssl] data.documents_per_task=9 data.min_documents=3 trainer.max_steps=1 logger=none"
    command = str(tmp_path / "venv/bin/bora")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONPATH", raising=False)  # it may point to a checkout
        assert ask(str(python), "-c", "import bora; print(bora.__file__)").startswith(str(site))
        ask(command, "run", *small.split(), "hydra.run.dir=run")
        said = ask(command, "export", "run", "out", code=2)
        # The package to install must be the missing one, and not one of another project.
        install = said.partition("pip install ")[2].split()
        assert install == ["peft"]
        ask(*pip, *install)
        assert "3 PEFT adapters: " in ask(command, "export", "run", "out")
    assert json.loads((elsewhere / "run/summary.json").read_text())["steps"] == 1
