#!/usr/bin/env bash
# The prior as a whole in every step against the grid's, by document; and the paper's rule. The grid's shape and seed 0.
# Run from the repository root, after grid.sh. What is finished is not done again.
set -u
DATA=${DATA:-../shared/data/folketing.csv.xz}
OUT=${OUT:-experiments/folketing}
SIZES=[60,57,51,48,30,30,29,27,23,22,21,20,20,19,18,18,18,17,16,16,16,16,15,14,14]
SHAPE="data=table data.path=$DATA model=smollm2_135m data.n_tasks=25 data.min_documents=60 data.documents_per_task=$SIZES
  data.min_characters=40 data.max_tokens=48 data.batch_size=8 optim.patience=2 trainer.max_epochs=10"
run() { "${BORA:-.venv/bin/python}" -m bora.run -m sweep=joblib $SHAPE seed=0 "$@"; }
run name=folketing-dense hydra.sweep.dir=$OUT/dense prior.estimator=dense optim.lr=1e-3 tau=100000,1000
run name=folketing-rule hydra.sweep.dir=$OUT/rule prior.parameterization=centered tau=100,1000
