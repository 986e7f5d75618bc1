#!/usr/bin/env bash
# What optim.average brings: stdlib × opt_mini from τ = 0 to ∞ and folketing × SmolLM2-135M at its best τ, and τ learned,
# all else as in the studies of the last values.
# Run from the repository root after `make smollm2`; DATA is folketing's table of speeches. About two hours on 2 cores.
# Run it again to resume. Arguments are further overrides.
set -u
DATA=${DATA:?give the table of speeches: DATA=folketing.csv.xz experiments/average/study.sh}
OUT=${OUT:-experiments/average}
BORA=${BORA:-.venv/bin/bora}
sweep() { $BORA run -m sweep=joblib seed=0,1,2 optim.lr=1e-3 optim.average=true "$@"; }

sweep name=stdlib-average hydra.sweep.dir=$OUT/stdlib tau=10,learn,0,100,inf data.documents_per_task=240 \
  data.max_tokens=48 trainer.max_epochs=12 optim.patience=3 "$@"

SIZES=[60,57,51,48,30,30,29,27,23,22,21,20,20,19,18,18,18,17,16,16,16,16,15,14,14]
sweep name=folketing-average hydra.sweep.dir=$OUT/folketing tau=10000,learn data=table data.path=$DATA \
  model=smollm2_135m model.dtype=bfloat16 data.n_tasks=25 data.min_documents=60 data.documents_per_task=$SIZES \
  data.min_characters=40 data.max_tokens=48 data.batch_size=8 optim.patience=2 trainer.max_epochs=10 "$@"

$BORA report $OUT --archive $OUT/runs.csv.gz
