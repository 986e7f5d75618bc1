#!/usr/bin/env bash
# folketing × SmolLM2-135M over the whole range of τ: 25 speakers whose sizes have the shape of the paper's Figure 1,
# a sixteenth of its documents (7 to 30 to train on). Run from the repository root, after `make smollm2`.
# Two jobs at a time, a core each; half an hour or more a pair on 2 cores without bfloat16 instructions.
# What is finished is not done again, what was interrupted goes on.
set -u
DATA=${DATA:-../shared/data/folketing.csv.xz}
OUT=${OUT:-experiments/folketing/grid}
# Training, validation and test documents of the published code's 25 speakers, over 16, largest first.
SIZES=[60,57,51,48,30,30,29,27,23,22,21,20,20,19,18,18,18,17,16,16,16,16,15,14,14]
SHAPE="data=table data.path=$DATA model=smollm2_135m data.n_tasks=25 data.min_documents=60 data.documents_per_task=$SIZES
  data.min_characters=40 data.max_tokens=48 data.batch_size=8 optim.lr=1e-3 optim.patience=2 trainer.max_epochs=10"
run() { "${BORA:-.venv/bin/python}" -m bora.run -m sweep=joblib $SHAPE name=folketing-figure1 hydra.sweep.dir=$OUT "$@"; }
run seed=0 tau=inf,10000,1000,100000,100,1000000,0,10,1
run seed=1,2 tau=inf,100000,10000,1000
