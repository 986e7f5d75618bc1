"""Download what a run needs, as `bora run` does on first use: its corpus and its model.

python experiments/talk_of_norway/fetch.py experiment=paper
"""

import sys

from bora.commands.exits import cli_errors
from bora.config.compose import compose_config
from bora.model.loading import load_backbone
from bora.train.build import load_corpus

with cli_errors():
    cfg, _ = compose_config(sys.argv[1:])
    load_corpus(cfg, load_backbone(cfg.model, "cpu", cfg.data.max_tokens))
