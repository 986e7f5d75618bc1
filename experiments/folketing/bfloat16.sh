#!/usr/bin/env bash
# The grid's runs again with a bfloat16 backbone, and in bfloat16 the prior as a whole in every step, three seeds each.
# Run from the repository root, on a processor that is fast in bfloat16. What is finished is not done again.
set -u
DATA=${DATA:-../shared/data/folketing.csv.xz}
OUT=${OUT:-experiments/folketing/bfloat16}
SIZES=[60,57,51,48,30,30,29,27,23,22,21,20,20,19,18,18,18,17,16,16,16,16,15,14,14]
SHAPE="data=table data.path=$DATA model=smollm2_135m model.dtype=bfloat16 data.n_tasks=25 data.min_documents=60
  data.documents_per_task=$SIZES data.min_characters=40 data.max_tokens=48 data.batch_size=8 optim.lr=1e-3
  optim.patience=2 trainer.max_epochs=10"
run() { "${BORA:-.venv/bin/python}" -m bora.run -m sweep=joblib $SHAPE "$@"; }
run name=folketing-bfloat16 hydra.sweep.dir=$OUT/by_document tau=1000 seed=0,1,2
run name=folketing-bfloat16-dense hydra.sweep.dir=$OUT/dense prior.estimator=dense tau=1000 seed=0,1,2
run name=folketing-bfloat16 hydra.sweep.dir=$OUT/by_document tau=10000 seed=0,1,2
