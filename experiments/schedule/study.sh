#!/usr/bin/env bash
# What a falling learning rate and dropout bring, at the best τ of two grids, all else as there.
# Run from the repository root after `make smollm2`; DATA is folketing's table of speeches. About half an hour for stdlib
# and as much for folketing on 2 cores. Run it again to resume. Arguments are further overrides.
# Folketing's constant rate without dropout is experiments/folketing's bfloat16 grid at τ = 10⁴: the same config, so not run.
set -u
DATA=${DATA:?give the table of speeches: DATA=folketing.csv.xz experiments/schedule/study.sh}
OUT=${OUT:-experiments/schedule}
BORA=${BORA:-.venv/bin/bora}
sweep() { $BORA run -m sweep=joblib seed=0,1,2 optim.lr=1e-3 "$@"; }

sweep name=stdlib-schedule hydra.sweep.dir=$OUT/stdlib tau=10 data.documents_per_task=240 data.max_tokens=48 \
  trainer.max_epochs=12 optim.patience=3 optim.schedule=constant,cosine lora.dropout=0.0,0.1 "$@"

SIZES=[60,57,51,48,30,30,29,27,23,22,21,20,20,19,18,18,18,17,16,16,16,16,15,14,14]
FOLKETING="name=folketing-schedule tau=10000 data=table data.path=$DATA model=smollm2_135m model.dtype=bfloat16 data.n_tasks=25 \
  data.min_documents=60 data.documents_per_task=$SIZES data.min_characters=40 data.max_tokens=48 data.batch_size=8 \
  optim.patience=2 trainer.max_epochs=10"
sweep hydra.sweep.dir=$OUT/folketing/cosine optim.schedule=cosine $FOLKETING "$@"
sweep hydra.sweep.dir=$OUT/folketing/dropout lora.dropout=0.1 $FOLKETING "$@"

$BORA report $OUT --archive $OUT/runs.csv.gz
