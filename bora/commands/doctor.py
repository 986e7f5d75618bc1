"""The command `bora doctor OVERRIDES`: this machine, and what a config costs on it, before it is run.

    bora doctor model=smollm2_135m data=table data.path=letters.csv tau=100

It takes what `bora run` takes, of one run. Nothing is written and nothing downloaded.
"""

import argparse
import importlib.util
import json
import logging
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from bora.commands.run import leaving
from bora.config import check, config_folder
from bora.errors import UserError
from bora.lib.redaction import Parser, set_aside
from bora.runs.replay import AGAIN, as_configs

WHOLE = 0.9  # of what is free that a run may take before it is told


def parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="bora doctor", description="This machine, and what a config costs on it, before it is run."
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for bora run")
    parser.add_argument(
        AGAIN, type=Path, metavar="RUN", help="as for bora run: begin at a run directory's config"
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="load the model and take a few real steps, for seconds an epoch and memory",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def composed(overrides: list[str], again: Path | None) -> tuple[DictConfig, Path]:
    """The config that `bora run` would be given, checked, and its run directory.

    Args:
        again: run directory whose config is begun at; None for conf/config.yaml.

    Raises:
        HydraException, OmegaConfBaseException, UserError: what `bora run` would end with.
    """
    GlobalHydra.instance().clear()
    with (
        nullcontext(config_folder()) if again is None else as_configs(again) as folder,
        initialize_config_dir(str(folder), version_base="1.3"),
    ):
        cfg = compose("config", overrides, return_hydra_config=True)
    directory = Path(str(OmegaConf.select(cfg, "hydra.run.dir")))
    with open_dict(cfg):
        del cfg["hydra"]
    check(cfg)
    return cfg, directory


def machine(directory: Path) -> dict[str, Any]:
    """What there is, plain values by what they are of; bytes where it is memory or disk."""
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from bora.lib import machine
    from bora.lib.cache import cache_root
    from bora.model.loading import bfloat16_speed
    from bora.runs.directory import versions

    memory = machine.memory()
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "processor": machine.processor(),
        "cores": machine.cores(),
        "threads": torch.get_num_threads(),
        "memory": {"total": memory[0], "free": memory[1]},
        "gpus": machine.gpus(),
        "bfloat16_speed": bfloat16_speed(),
        "disk": [
            {"of": of, "folder": str(path.expanduser().absolute()), "free": machine.free_disk(path)}
            for of, path in (
                ("runs", directory),
                ("cache", cache_root()),
                ("hub's cache", Path(HF_HUB_CACHE)),
            )
        ],
    }


class Warnings(logging.Handler):
    """Keeps what bora's modules warn of, to be told at the end. Within it they say nothing themselves."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> "Warnings":
        ours = logging.getLogger("bora")
        ours.addHandler(self)
        ours.propagate = False
        return self

    def __exit__(self, *error: object) -> None:
        ours = logging.getLogger("bora")
        ours.removeHandler(self)
        ours.propagate = True


@contextmanager
def nothing_kept(cfg: DictConfig) -> Iterator[None]:
    """Within: the config's model and documents can be read, if they are here; nothing is downloaded or kept.

    Raises:
        UserError: the documents are not here.
    """
    from bora.lib import cache

    if cfg.data.source == "talk_of_norway" and cfg.data.path is None:
        file = cache.cache_root() / "talk_of_norway" / "ton.csv"
        if not file.is_file():
            raise UserError(
                f"data=talk_of_norway: {file} is not there; what it costs can be told once bora run has downloaded it, "
                "or with data.path=/path/to/ton.csv"
            )
    with cache.read_only():
        if cfg.data.source != "datasets" or importlib.util.find_spec("datasets") is None:
            yield
            return
        import datasets
        from huggingface_hub import constants

        here = Path(cfg.data.path).expanduser().is_dir()
        settings: list[tuple[Any, str, Any]] = [
            (datasets.config, "HF_HUB_OFFLINE", True),
            (constants, "HF_HUB_OFFLINE", True),
        ]
        with tempfile.TemporaryDirectory() as scratch:
            if here:  # the library turns the files into its own format first
                settings.append((datasets.config, "HF_DATASETS_CACHE", Path(scratch)))
            before = [getattr(module, name) for module, name, _ in settings]
            for module, name, value in settings:
                setattr(module, name, value)
            try:
                yield
            finally:
                for (module, name, _), value in zip(settings, before, strict=True):
                    setattr(module, name, value)


@contextmanager
def scratch() -> Iterator[None]:
    """Within: what libraries keep for their next start (fonts, compiled code) goes where it is removed again."""
    names = ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(dict.fromkeys(names, folder))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def examine(cfg: DictConfig, measured: bool) -> dict[str, Any]:
    """What the config's run costs; see bora.train.cost and bora.train.measure.

    Raises:
        UserError: what a run's own start would, or the model or documents are not here.
    """
    from bora.model.loading import load_backbone
    from bora.train.cost import cost
    from bora.train.measure import measure
    from bora.train.run import load_corpus, quiet, start_of

    quiet()
    if cfg.init_from is not None:
        start_of(cfg.init_from)
    with nothing_kept(cfg):
        pretrained = load_backbone(cfg.model, cfg.trainer.accelerator, cfg.data.max_tokens, weights=False)
        corpus = load_corpus(cfg, pretrained)
        found = cost(cfg, pretrained.model, corpus)
        taken = asdict(measure(cfg, corpus, found)) if measured else None
    return asdict(found) | {
        "data": cfg.data.name,
        "tau": float(cfg.tau),
        "parameters": found.parameters,
        "memory_in_all": found.memory_in_all,
        "epochs": cfg.trainer.max_epochs,
        "measured": taken,
    }


def look_out(cfg: DictConfig, machine: dict[str, Any], cost: dict[str, Any]) -> list[str]:
    """What is likely to go wrong, a line each."""
    from bora.lib.console import size
    from bora.model.loading import on_gpu

    lines = []
    gpu = on_gpu(cfg.trainer.accelerator)
    if gpu and not machine["gpus"]:
        lines.append("trainer.accelerator asks for a GPU, and torch sees none")
    free = min(g["free"] for g in machine["gpus"]) if gpu and machine["gpus"] else None
    if not gpu:
        free = machine["memory"]["free"]
    needed = max(cost["memory_in_all"], (cost["measured"] or {}).get("peak_memory", 0))
    if free is not None and needed > WHOLE * free:
        lines.append(
            f"a step needs {size(needed)} of memory, and {size(free)} are free: take fewer tasks, a lower lora.rank, "
            "a smaller data.batch_size or model.dtype=bfloat16"
        )
    disk = machine["disk"][0]["free"]
    if 3 * cost["checkpoint"] > WHOLE * disk:  # two, and the one that is being written
        lines.append(f"checkpoints need {size(3 * cost['checkpoint'])} of disk, and {size(disk)} are free")
    return lines


def main() -> None:
    """Run the command line."""
    found: dict[str, Any] = {}
    with leaving(), scratch():
        set_aside()
        arguments = parser().parse_intermixed_args()
        cfg, directory = composed(arguments.overrides, arguments.again)
        from bora.commands.show import show_cost, show_machine
        from bora.runs.directory import json_safe

        found["machine"] = machine(directory)
        if not arguments.json:
            show_machine(found["machine"])
        with Warnings() as warnings:
            found["cost"] = examine(cfg, arguments.measure)
        found["look_out"] = warnings.lines + look_out(cfg, found["machine"], found["cost"])
    if arguments.json:
        print(json.dumps(json_safe(found), ensure_ascii=False))
        return
    show_cost(found["cost"])
    for line in found["look_out"]:
        print(f"look out: {line}")


if __name__ == "__main__":
    main()
