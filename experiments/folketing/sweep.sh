#!/usr/bin/env bash
# Real speeches, a real language model: 25 members of the Danish parliament, SmolLM2-135M.
# Run from the repository root, after `make smollm2`; DATA names the table of speeches.
# About 8 minutes a job on 2 cores without bfloat16. What is finished is not done again.
set -eu
DATA=${DATA:-../shared/data/folketing.csv.xz}
COMMON="data=table data.path=$DATA model=smollm2_135m data.n_tasks=25 data.min_documents=20 data.documents_per_task=20
  data.min_characters=40 data.max_tokens=64 data.batch_size=8 trainer.max_epochs=5 optim.patience=2"
run() { "${BORA:-.venv/bin/python}" -m bora.run -m $COMMON "$@"; }
run name=folketing-noncentered hydra.sweep.dir=experiments/folketing/noncentered \
    prior.parameterization=noncentered tau=10000,inf,1000,0,100000,100
run name=folketing-paper-rule hydra.sweep.dir=experiments/folketing/centered \
    prior.parameterization=centered tau=100,1000
# The rule gives tau=0 a learning rate of 1e-4, a tenth of the noncentered runs'; here it gets theirs.
run name=folketing-independent hydra.sweep.dir=experiments/folketing/independent \
    prior.parameterization=centered optim.lr=1e-3 tau=0
