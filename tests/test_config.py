from pathlib import Path

import hydra
import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from bora.config import check, config_folder, format_value, register_resolvers
from bora.errors import UserError
from bora.lib.stopping import Stop
from bora.runs.directory import RunDirectory
from bora.runs.metrics import MetricsFile
from bora.train.module import HierarchicalLoRA, learning_rate
from bora.train.run import build_data, build_model, load_corpus
from bora.train.trainer import build_fitter

register_resolvers()


def config(*overrides: str):
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("config", list(overrides))


def options(group: str) -> list[str]:
    return sorted(f.stem for f in (config_folder() / group).glob("*.yaml") if not f.stem.startswith("_"))


GROUPS = sorted(d.name for d in config_folder().iterdir() if d.is_dir() and options(d.name))


@pytest.mark.parametrize("choice", [f"{g}={o}" for g in GROUPS for o in options(g)])
def test_every_config_composes_and_holds_to_the_checks(choice):
    needed = {
        "data=table": ["data.path=x.csv"],
        "data=datasets": ["data.path=x"],
        "model=hub": ["model.path=someone/model"],
    }
    cfg = config(choice, *needed.get(choice, []))
    check(cfg)
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def test_the_groups_are_the_ones_that_the_design_names():
    assert set(GROUPS) >= {"model", "data", "lora", "prior", "optim", "trainer", "logger", "experiment"}


@pytest.mark.parametrize(
    ("trainer", "data"),
    [("cpu", "stdlib"), ("cpu", "talk_of_norway"), *((t, "table") for t in options("trainer"))],
)
def test_every_data_and_trainer_config_instantiates(trainer, data, tmp_path, monkeypatch):
    monkeypatch.setenv("BORA_CACHE", str(tmp_path))
    overrides = [f"data={data}", f"trainer={trainer}", "data.max_tokens=16", "logger=none"]
    if data != "stdlib":
        rows = [
            f"speaker {i % 3},2000-01-{i % 28 + 1:02d},speech number {i} by someone who goes on and on"
            for i in range(450)
        ]
        (tmp_path / "ton.csv").write_text("\n".join(["rep_name,date,text", *rows]))
        overrides.append(f"data.path={tmp_path / 'ton.csv'}")
    cfg = config(*overrides)
    pretrained = instantiate(cfg.model.loader)
    corpus = load_corpus(cfg, pretrained)
    assert len(corpus.task_names) == (25 if data == "stdlib" else 3)
    module = build_data(cfg, pretrained, corpus)
    assert isinstance(build_model(cfg, pretrained, corpus.task_names, module), HierarchicalLoRA)
    if trainer != "gpu":  # Lightning looks for the device when it is built
        metrics = MetricsFile(tmp_path / "metrics.csv", {})
        built = build_fitter(cfg, RunDirectory(tmp_path / "run"), [metrics], "val/nll", {}, Stop())
        assert isinstance(built.trainer, L.Trainer)


def test_the_papers_experiment_is_the_papers():
    cfg = config("experiment=paper")
    assert (cfg.model.path, cfg.data.name, cfg.data.selection) == (
        "facebook/opt-350m",
        "talk_of_norway",
        "paper",
    )
    assert (cfg.prior.parameterization, cfg.prior.penalty, cfg.optim.lr) == ("centered", "gaussian", None)
    assert (cfg.trainer.max_epochs, cfg.optim.patience, cfg.name) == (1000, 8, "paper")
    assert [learning_rate(t, "centered") for t in (0, 1, 10, 100, 1e3, 1e4)] == pytest.approx(
        [1e-4, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]  # Table 1
    )


def test_by_default_one_learning_rate_serves_every_tau():
    assert {learning_rate(t, "noncentered") for t in (0.0, 1.0, 1e6, float("inf"))} == {1e-3}
    assert learning_rate(float("inf"), "centered") == 1e-3


def test_the_lightning_trainer_takes_every_key_of_the_gpu_config():
    import inspect

    accepted = inspect.signature(L.Trainer).parameters
    assert set(config("trainer=gpu").trainer) <= set(accepted)


@pytest.mark.parametrize("model", options("model"))
def test_every_models_loader_is_a_function_that_takes_its_keys(model):
    loader = dict(config(f"model={model}", *(["model.path=x"] if model == "hub" else [])).model.loader)
    function = hydra.utils.get_method(loader.pop("_target_"))
    import inspect

    inspect.signature(function).bind(**loader)


@pytest.mark.parametrize(
    "override",
    [
        "tau=-1", "tau=nan", "tau=abc", "tau=null", "tau=true", "seed=-1", "seed=0.5", "lora.rank=0", "lora.rank=1.5",
        "lora.alpha=0", "lora.init_std=-1", "lora.target_modules=[]", "prior.parameterization=other",
        "prior.penalty=other", "optim.lr=0", "optim.lr=nan", "optim.lr=inf", "optim.betas=[0.9]",
        "optim.betas=[0.9,1.0]", "optim.patience=0", "data.batch_size=0", "data.max_tokens=1", "data.n_tasks=0",
        "data.split.test=0", "data.split.validation=x", "data.append_eos=1", "trainer.max_epochs=0",
        "trainer.max_steps=0", "trainer.max_steps=x", "trainer.log_every_n_steps=x", "optim.betas=0.9", "data.prompt=5",
        "data.template=null", "data.modules=null", "data.modules=[]", "lora.target_modules=3",
        "model.path=5", "data.documents_per_task=2", "data.batch_size=99999999999999999999", "data.name=[1]", "name=null",
        "+data.split.foo=1", "+lora.dropout=0.1", "+optim.weight_decay=0.1", "+prior.tau=1",
        "trainer.accelerator=mps", "+trainer.precision=bf16-mixed", "+logger.tracking_uri=5",
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(override):
    with pytest.raises(UserError) as error:
        check(config(override))
    assert str(error.value).startswith(override.split("=")[0].lstrip("+"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["model.quantization=int8", "model.compile=true"])
def test_a_sharded_backbone_is_a_plain_one(override):
    check(config("trainer=fsdp"))
    with pytest.raises(UserError, match=f"^trainer=fsdp .*{override.partition('=')[0]}="):
        check(config("trainer=fsdp", override))


@pytest.mark.parametrize("tau", ["0", "0.5", "100", "1e5", "inf"])
def test_tau_from_zero_to_infinity_is_fine(tau):
    check(config(f"tau={tau}"))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (100, "100"),
        (100.0, "100"),
        (-1, "-1"),
        (1e5, "100000"),
        (0.001, "0.001"),
        (float("inf"), "inf"),
        ("a/b/c.csv.xz", "c.csv.xz"),
        (None, "null"),
        (True, "true"),
        ("[q_proj,v_proj]", "q_proj-v_proj"),
    ],
)
def test_values_in_folder_names(value, name):
    assert format_value(value) == name
    assert Path(name).name == name
