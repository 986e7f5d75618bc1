#!/usr/bin/env bash
# What `make run` trains, at three τ: separate models, the default, one model. Five minutes a job on 2 cores.
set -eu
"${BORA:-.venv/bin/python}" -m bora.run -m tau=0,100,inf "hydra.sweep.dir=${OUT:-experiments/stdlib/default}"
