"""The schema: every config in conf/ fits it, and all settings that do not are named at once."""

import pytest
import yaml
from hydra import compose, initialize_config_dir

from bora.bayes.adamw import learning_rate
from bora.config.compose import compose_config, format_value
from bora.config.parse import parse
from bora.config.schema import Config, conf_folder
from bora.errors import UserError

GROUPS = ("data", "experiment", "logger", "lora", "model", "optim", "prior", "trainer")
NEEDED = {"data=table": "data.path=x.csv", "data=datasets": "data.path=x", "model=hub": "model.path=someone/model"}


def config(*overrides: str) -> Config:
    return compose_config(list(overrides))[0]


def options(group: str) -> list[str]:
    return sorted(f.stem for f in (conf_folder() / group).glob("*.yaml") if not f.stem.startswith("_"))


@pytest.mark.parametrize("choice", [f"{g}={o}" for g in GROUPS for o in options(g)])
def test_every_config_fits_the_schema_and_survives_yaml(choice):
    cfg = config(choice, *([NEEDED[choice]] if choice in NEEDED else []))
    assert parse(yaml.safe_load(yaml.safe_dump(cfg.model_dump()))) == cfg


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("tau=-1", "tau=-1 must be a number from 0 to inf"),
        ("tau='100'", "tau='100' (a text) must be a number from 0 to inf"),
        ("seed=0.5", "seed=0.5 must be a valid integer"),
        ("lora.target_modules=[]", "lora.target_modules=[] must be "),
        ("prior.penalty=other", "prior.penalty=other must be 'gaussian' or 'norm'"),
        ("optim.betas=[0.9,1.0]", "optim.betas.1=1.0 must be less than 1"),
        ("data.append_eos=1", "data.append_eos=1 must be a valid boolean"),
        ("data.documents_per_task=2", "data.documents_per_task=2 must be greater than or equal to 3 or a valid list"),
        ("trainer.accelerator=mps", "trainer.accelerator=mps must be 'cpu', 'gpu', 'cuda' or 'auto'"),
        ("trainer.max_steps=0", "trainer.max_steps=0 trains nothing"),
        ("trainer.extra.precision=16", "trainer.extra.precision: adapters are trained in float32"),
        ("trainer.extra.limit_val_batches=2", "trainer.extra.limit_val_batches: validation and test read all"),
        ("trainer.gradient_clip_val=1", "trainer.gradient_clip_val: there is no such setting; give optim.clip"),
        ("trainer.extra.max_epochs=2", "trainer.extra.max_epochs: give trainer.max_epochs"),
        ("trainer.extra.check_val_every_n_epoch=9", "trainer.extra.check_val_every_n_epoch=9: no epoch would be"),
        ("data.template=x", "data.template='x' must hold {text}"),
        ("logger.kind=paper", "logger.kind must be one of none, wandb, mlflow, tensorboard; give logger=NAME"),
        ("data=table", "data.path is needed and has no default; give data.path=…"),
        ("taau=1", "taau: there is no such setting; did you mean tau?"),
        ("+lora.ranc=1", "lora.ranc: there is no such setting; did you mean lora.rank?"),
        ("data.path=a.csv", "data.path: there is no such setting for data=stdlib, only for data=table"),
        ("model.path=a/b", "model.path: there is no such setting for model=packaged, only for model=hub"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_it_must_be(override, line):
    with pytest.raises(UserError) as error:
        config(override)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_all_problems_are_named_at_once():
    with pytest.raises(UserError) as error:
        config("tau=-1", "foo=1", "lora.rank=x", "+logger.api_key=hush", "data.split.seed=-1")
    keys = {line.split(" ")[0].split("=")[0].rstrip(":") for line in str(error.value).splitlines()}
    assert keys == {"tau", "foo", "lora.rank", "logger.api_key", "data.split.seed"}
    assert "hush" not in str(error.value)  # the value of an unknown key may be a secret


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ("trainer=fsdp model.quantization=int8", "^trainer=fsdp .*model.quantization="),
        ("trainer=fsdp model.compile=true", "^trainer=fsdp .*model.compile="),
        ("model.gradient_checkpointing=true model.compile=true", r"set model\.compile=false"),
        ("experiment=reference trainer=ddp", r"trainer\.devices=1"),
        ("experiment=reference trainer.strategy=ddp trainer.num_nodes=2", r"trainer\.num_nodes=1"),
        ("experiment=reference trainer.accumulate_grad_batches=2", r"trainer\.accumulate_grad_batches=1"),
        ("trainer.limit_train_batches=3 trainer.accumulate_grad_batches=2", "^trainer.limit_train_batches=3 leaves"),
        ("trainer.num_nodes=2", "^trainer.num_nodes=2 needs several processes: give trainer=ddp or trainer=fsdp"),
        ("trainer.extra.num_nodes=2", "^trainer.extra.num_nodes: give trainer.num_nodes"),
    ],
)
def test_incompatible_settings_are_refused(overrides, line):
    with pytest.raises(UserError, match=line):
        config(*overrides.split())


def test_cuda_graphs_are_recorded_unless_a_setting_prevents_it():
    assert config().records_steps
    others = "trainer=fsdp", "model.gradient_checkpointing=true", "lora.dropout=0.1", "model.cuda_graphs=false"
    assert not any(config(other).records_steps for other in others)


def test_experiment_paper_has_the_papers_settings():
    cfg = config("experiment=paper")
    assert (cfg.model.path, cfg.data.name, cfg.data.selection) == ("facebook/opt-350m", "talk_of_norway", "paper")
    assert (cfg.data.split.validation, cfg.data.split.test, cfg.data.min_characters) == (0.17, 0.33, 40)
    assert (cfg.prior.parameterization, cfg.prior.penalty, cfg.optim.lr) == ("centered", "gaussian", None)
    assert (cfg.trainer.max_epochs, cfg.optim.patience, cfg.name) == (1000, 8, "paper")
    rates = [learning_rate(t, "centered") for t in (0, 1, 10, 100, 1e3, 1e4)]
    assert rates == pytest.approx([1e-4, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1])  # Table 1


def test_values_that_hydra_cannot_parse_are_taken_literally():
    cfg = config("data=table", "data.path=tal (1), æøå {2}.csv", "data.task=tau=1")
    assert (cfg.data.path, cfg.data.task) == ("tal (1), æøå {2}.csv", "tau=1")


def test_equal_values_have_one_spelling_in_folder_names():
    assert format_value([100, 1000]) == format_value([100.0, 1e3])
    values = 100.0, 1e5, 0.001, float("inf"), None, True, "sdpa"
    assert [format_value(v) for v in values] == ["100", "100000", "0.001", "inf", "null", "true", "sdpa"]


def test_different_values_have_different_folder_names():
    values = ["2019/t.csv", "2020/t.csv", "t.csv", "a b", "a-b", "é", "è", "[q_proj,v_proj]"]
    values += ["x" * 300 + "a", "x" * 300 + "b", 0.1, 0.1 + 1e-16 * 2]
    assert len({format_value(v) for v in values}) == len(values)
    assert all("/" not in format_value(v) and len(format_value(v)) < 50 for v in values)


def test_the_callers_hydra_is_unchanged(tmp_path):
    (tmp_path / "theirs.yaml").write_text("a: 1")
    with initialize_config_dir(str(tmp_path), version_base=None):
        compose_config(["tau=1"])
        assert compose("theirs") == {"a": 1}
