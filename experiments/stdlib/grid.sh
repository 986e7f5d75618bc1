#!/usr/bin/env bash
# stdlib × opt_mini over the whole range of τ, three seeds, both parameterisations. Run from the repository root.
# Two jobs at a time, a core each, about six minutes a job: two to three hours on 2 cores.
# What is finished is not done again. Centered, τ ≥ 10⁵ has a learning rate of 1 and more by the paper's rule.
set -u
OUT=${OUT:-experiments/stdlib/grid}
# The whole prior in every step and uniform batches: what the project did when the grid was begun (see estimator.sh).
SHAPE="data.documents_per_task=240 data.max_tokens=48 data.order=shuffled prior.estimator=dense
  trainer.max_epochs=12 optim.patience=3"
TAU=0,1,10,100,1000,10000,100000,1000000,inf
run() { "${BORA:-.venv/bin/python}" -m bora.run -m sweep=joblib $SHAPE tau=$TAU "$@"; }
for seed in 0 1 2; do
  run seed=$seed name=stdlib-noncentered hydra.sweep.dir=$OUT/noncentered optim.lr=1e-3
  run seed=$seed name=stdlib-paper-rule hydra.sweep.dir=$OUT/centered prior.parameterization=centered
done
