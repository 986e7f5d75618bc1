#!/usr/bin/env bash
# The prior by document against the prior as a whole, and bucketed against shuffled batches: the grid's shape.
# Run from the repository root; two jobs at a time, a core each. What is finished is not done again.
set -u
OUT=${OUT:-experiments/stdlib/estimator}
SHAPE="data.documents_per_task=240 data.max_tokens=48 trainer.max_epochs=12 optim.patience=3"
run() { "${BORA:-.venv/bin/python}" -m bora.run -m sweep=joblib $SHAPE name=stdlib-estimator tau=10,1000 seed=0,1 "$@"; }
# dense and shuffled are the grid's own runs.
run hydra.sweep.dir=$OUT/by_document prior.estimator=by_document data.order=bucketed,shuffled
run hydra.sweep.dir=$OUT/dense prior.estimator=dense data.order=bucketed
