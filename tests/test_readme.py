"""What the README says can be typed works, through a real shell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

import bora
from bora.config import check, config_folder, register_resolvers

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
MODEL = f"model.path={Path(bora.__file__).parent / 'assets/opt_mini'}"
SMALL = "data.documents_per_task=12 data.n_tasks=2 trainer.max_steps=1 logger=none"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("bora run")])
def test_commands_run(command, tmp_path):
    rng = np.random.default_rng(0)
    speeches = [" ".join(rng.choice(["order", "the", "house", "aye", "no", "speaker"], 9)) for _ in range(60)]
    frame = pd.DataFrame({"speaker": ["a", "b"] * 30, "speech": speeches})
    frame.to_csv(tmp_path / "speeches.csv", index=False)
    if "model=opt_350m" in command:  # its weights are a small model's here
        command += f" {MODEL}"
    command = command.replace("tau=0,1,10,100,1000,10000,inf seed=0,1", "tau=0,inf seed=0,1")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        f"{command} {SMALL}",
        shell=True,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    jobs = 4 if " -m " in command else 1
    assert len(list(tmp_path.rglob("summary.json"))) == jobs


def test_the_two_commands_are_make_targets():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for command in (c.split("#")[0].split() for c in COMMANDS if c.startswith("make ")):
        assert f"\n{command[1]}:" in makefile


def options() -> list[str]:
    """Every override that the README shows in running text and tables, as a shell hands it on."""
    shown = [
        c
        for c in re.findall(r"`([^`\n]+=[^`\n]+)`", README)
        if not re.search(r"NAME_OR|multirun|…|/path/|\.ckpt|RUN", c)
    ]
    found = []
    for code in shown:
        for alternative in (
            code.replace("\\|", "|").split(" ") if "'" not in code and '"' not in code else [code]
        ):
            key, _, values = alternative.partition("=")
            found += [f"{key}={v}" for v in values.split("|")] if "|" in values else [alternative]
    return [f for f in found if "=" in f]


@pytest.mark.parametrize("option", options())
def test_options_compose(option):
    register_resolvers()
    shell = subprocess.run(f"printf %s {option}", shell=True, capture_output=True, text=True, check=True)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        extra = [] if option != "data=table" else ["data.path=x.csv"]
        check(compose("config", [shell.stdout, *extra]))
