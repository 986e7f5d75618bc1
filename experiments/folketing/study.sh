#!/usr/bin/env bash
# folketing × SmolLM2-135M: the whole range of τ, the prior's estimator, the paper's rule, and a bfloat16 backbone.
# Run from the repository root after `make smollm2`; DATA is the table of speeches. Two jobs at a time, a core each,
# half an hour or more a pair without bfloat16 instructions. Run it again to resume.
set -u
DATA=${DATA:?give the table of speeches: DATA=folketing.csv.xz experiments/folketing/study.sh}
OUT=${OUT:-experiments/folketing}
BORA=${BORA:-.venv/bin/bora}
# Training, validation and test documents of the published code's 25 speakers, over 16, largest first.
SIZES=[60,57,51,48,30,30,29,27,23,22,21,20,20,19,18,18,18,17,16,16,16,16,15,14,14]
SHAPE="data=table data.path=$DATA model=smollm2_135m data.n_tasks=25 data.min_documents=60 data.documents_per_task=$SIZES
  data.min_characters=40 data.max_tokens=48 data.batch_size=8 optim.patience=2 trainer.max_epochs=10"
sweep() { "$BORA" run -m sweep=joblib $SHAPE "$@"; }

# The grid.
grid() { sweep model.dtype=float32 optim.lr=1e-3 name=folketing-figure1 hydra.sweep.dir=$OUT/grid "$@"; }
grid seed=0 tau=inf,10000,1000,100000,100,1000000,0,10,1
grid seed=1,2 tau=inf,100000,10000,1000

# The whole prior in every step, and the paper's rule.
sweep model.dtype=float32 name=folketing-dense hydra.sweep.dir=$OUT/dense prior.estimator=dense optim.lr=1e-3 \
  tau=100000,1000 seed=0
sweep model.dtype=float32 name=folketing-rule hydra.sweep.dir=$OUT/rule prior.parameterization=centered tau=100,1000 seed=0

# A bfloat16 backbone, on a processor that is fast in it.
bfloat16() { sweep model.dtype=bfloat16 optim.lr=1e-3 seed=0,1,2 "$@"; }
bfloat16 name=folketing-bfloat16 hydra.sweep.dir=$OUT/bfloat16/by_document tau=1000,10000
bfloat16 name=folketing-bfloat16-dense hydra.sweep.dir=$OUT/bfloat16/dense prior.estimator=dense tau=1000

"$BORA" report $OUT --archive $OUT/runs.csv.gz
