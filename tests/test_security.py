"""No code from elsewhere is run: not from a run directory, an export, the cache or a model."""

import ast
import io
import json
import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import bora.commands.run
from bora.commands import export, generate, report
from bora.errors import UserError
from bora.lib.cache import cached_table, digest
from bora.model.pretrained import from_pretrained
from tests.conftest import one_line, table
from tests.report.runs import write_run

PACKAGE = Path(bora.__file__).parent
ASSET = PACKAGE / "assets/opt_mini"
RUN = "data=table data.path=t.csv data.min_documents=5 data.max_tokens=16 data.drop_duplicates=false tau=10"
RUN = [*RUN.split(), "trainer.max_epochs=1", "lora.rank=1", "logger=none"]


class Bomb:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Make a folder with a table and a finished run on it, `run`."""
    folder = tmp_path_factory.mktemp("finished")
    table(folder / "t.csv", {"a": 20, "b": 20, "c": 20})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["bora.commands.run", *RUN, "hydra.run.dir=run"])
        GlobalHydra.instance().clear()
        bora.commands.run.main()
    return folder


@pytest.fixture
def run(finished, tmp_path, monkeypatch) -> Path:
    """Copy the finished run, with its table beside it."""
    shutil.copy(finished / "t.csv", tmp_path / "t.csv")
    shutil.copytree(finished / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Copy opt_mini's folder."""
    return Path(shutil.copytree(ASSET, tmp_path / "model"))


@pytest.fixture
def mark(tmp_path) -> Path:
    """Return the file that a bomb would make, which must not exist in the end."""
    path = tmp_path / "it ran"
    yield path
    assert not path.exists()


def test_pickles_in_checkpoints_are_not_run(run, mark, call, command):
    whole = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    for name, bomb in (("best", whole | {"x": Bomb(mark)}), ("last", Bomb(mark))):
        torch.save(bomb, run / f"checkpoints/{name}.ckpt")
    words = "best.ckpt is not a readable checkpoint: it holds pickled objects", "could run any code"
    one_line(call(generate.main, run, "--task", "a", "--prompt", "the"), *words)
    one_line(command(*RUN, "hydra.run.dir=other", "init_from=run"), *words)
    (run / "summary.json").unlink()  # so that it is resumed
    one_line(command(*RUN, "hydra.run.dir=run"), "last.ckpt is not a readable checkpoint: it holds pickled")
    for name in ("best", "last"):  # a bare pickle, not a zip archive as torch's files are
        (run / f"checkpoints/{name}.ckpt").write_bytes(pickle.dumps(Bomb(mark)))
    one_line(command(*RUN, "hydra.run.dir=run"), "last.ckpt is not a readable checkpoint")


def test_the_report_leaves_out_a_pickled_checkpoint(tmp_path, mark, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for tau in (0.0, 10.0):
        write_run(tmp_path / f"s/tau={tau:g}", tau)
    (tmp_path / "s/tau=10/checkpoints").mkdir()
    torch.save(Bomb(mark), tmp_path / "s/tau=10/checkpoints/best.ckpt")
    code, _, err = call(report.main, "s")
    told = [line for line in err.splitlines() if line.startswith("bora: ")]
    assert (code, len(told)) == (0, 1)
    assert "figure 6 is left out" in told[0]
    assert "best.ckpt is not a readable checkpoint: it holds pickled objects" in told[0]


BOMB = "{_target_: pathlib.Path.touch, _args_: [{_target_: pathlib.Path, _args_: [MARK]}]}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("source: packaged", f"source: packaged\n  loader: {BOMB}"),
        ("source: table", f"source: {BOMB}"),
        ("path: t.csv", "path: ${oc.env:HOME}"),
        ("init_std: 0.0", "init_std: !!python/object/apply:pathlib.Path.touch [MARK]"),
    ],
)
def test_nothing_in_a_run_directorys_config_is_called(run, mark, call, old, new):
    config = run / "config.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new.replace("MARK", f"'{mark}'"), 1))
    for found in (call(generate.main, run, "--task", "a", "--prompt", "the"), call(export.main, run, "out")):
        assert (found[0], str(config) in found[2], "Traceback" in found[2]) == (2, True, False)


def test_a_run_directorys_overrides_are_checked_as_if_typed(run, command):
    (run / ".hydra/overrides.yaml").write_text("- +x._target_=os.system\n- tau=${oc.env:HOME}\n")
    one_line(command("--again", str(run), "hydra.run.dir=again"), "bora: tau: read from the environment")


def in_zip(file: Path, mark: Path) -> None:
    torch.save({"x": Bomb(mark)}, file)


def bare(file: Path, mark: Path) -> None:
    file.write_bytes(pickle.dumps(Bomb(mark)))


def test_a_pickle_as_a_models_weights_is_not_run(folder, tmp_path, mark, command):
    in_zip(folder / "pytorch_model.bin", mark)
    from_pretrained(str(folder))  # safetensors are preferred
    (folder / "model.safetensors").unlink()
    table(tmp_path / "t.csv", {"a": 20, "b": 20})
    for write in (in_zip, bare):
        write(folder / "pytorch_model.bin", mark)
        one_line(command(*RUN, "model=hub", "model.path=model"), "model.path=model", "safetensors")


@pytest.mark.parametrize("kind", ["unknown", "known", "tokenizer", "generate"])
def test_code_that_comes_with_a_model_is_not_run_and_nobody_is_asked_to_allow_it(folder, mark, monkeypatch, kind):
    # By default transformers would ask on the terminal.
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    name = "tokenizer_config.json" if kind == "tokenizer" else "config.json"
    settings = json.loads((folder / name).read_text())
    auto = {"AutoConfig": "its.Config", "AutoModelForCausalLM": "its.Model", "AutoTokenizer": ["its.T", None]}
    settings["auto_map"] = auto
    if kind == "unknown":
        settings["model_type"] = "its own"
    if kind == "generate":
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate/generate.py").write_text(f"{code}def generate(*args, **more): pass")
    (folder / name).write_text(json.dumps(settings))
    (folder / "its.py").write_text(f"{code}class Config: pass\nclass Model: pass\nclass T: pass\n")
    if kind == "unknown":
        with pytest.raises(UserError, match="needs code of its own, which bora does not run"):
            from_pretrained(str(folder))
    else:  # transformers has its own classes for it
        ids = torch.tensor([[5, 6]])
        from_pretrained(str(folder)).model.generate(ids, max_new_tokens=1, do_sample=False)


def test_a_pickle_as_an_adapter_is_not_run(tmp_path, mark, command):
    folder = tmp_path / "adapter"
    folder.mkdir()
    about = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(about | {"base_model_name_or_path": str(ASSET)}))
    table(tmp_path / "t.csv", {"a": 20, "b": 20})
    for name in ("adapter_model.bin", "adapter_model.safetensors"):
        in_zip(folder / name, mark)
        one_line(command(*RUN, "init_from=adapter"), "adapter_model.safetensors is not readable")
        # As a model, transformers would load it onto the base that it names.
        one_line(command(*RUN, "model=hub", "model.path=adapter"), "model.path=adapter")
        (folder / name).unlink()


def test_a_pickle_in_the_cache_is_not_run(tmp_path, mark, monkeypatch):
    monkeypatch.setenv("BORA_CACHE", str(tmp_path))
    made = pa.table({"x": [1, 2]})
    key = digest("a table")
    bomb = pickle.dumps(Bomb(mark))
    # In an extension type, which Arrow unpickled until version 14, and as the whole file.
    about = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": bomb}
    out = io.BytesIO()
    schema = pa.schema([pa.field("x", pa.int64(), metadata=about)])
    with pa.ipc.new_file(out, schema) as writer:
        writer.write_table(pa.table([[3, 4]], schema=schema))
    (tmp_path / "tokens").mkdir()
    for content, expected in ((out.getvalue(), [3, 4]), (bomb, [1, 2])):
        for old in (tmp_path / "tokens").iterdir():
            old.unlink()
        (tmp_path / f"tokens/{key}.arrow").write_bytes(content)
        assert cached_table("tokens", key, lambda: made)["x"].to_pylist() == expected


def test_every_call_that_loads_files_forbids_running_code():
    """Ruff's S rules keep pickle, eval, unsafe YAML and shells out of the package, but do not check these keywords."""
    needed = {"torch.load": "weights_only=True", "AutoConfig": "trust_remote_code=False"}
    needed |= dict.fromkeys(("AutoModelForCausalLM", "AutoTokenizer"), "trust_remote_code=False")
    found = set()
    for source in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            name = ast.unparse(node.func).removesuffix(".from_pretrained") if isinstance(node, ast.Call) else ""
            if name in needed:
                found.add(name)
                assert needed[name] in [ast.unparse(keyword) for keyword in node.keywords], (source, node.lineno)
    assert {"torch.load", "AutoModelForCausalLM"} <= found
