#!/usr/bin/env bash
# The embedded default at three τ: separate models, the default, one model. Five minutes a job on 2 cores.
set -eu
"${BORA:-.venv/bin/python}" -m bora.run -m tau=0,100,inf trainer.max_epochs=5 hydra.sweep.dir=experiments/stdlib/default
