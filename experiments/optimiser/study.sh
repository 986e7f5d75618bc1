#!/usr/bin/env bash
# How many epochs does each way of training need, at each τ? stdlib × opt_mini, 25 modules of 30 training functions.
# Run from the repository root; about an hour and a half on 2 cores. Run it again to resume.
set -u
OUT=experiments/optimiser
BORA=${BORA:-.venv/bin/bora}
SHAPE="data.documents_per_task=60 data.max_tokens=48 trainer.max_epochs=40 optim.patience=8 seed=0"
TAUS="inf 1000000 100000 10000 1000 100 10 1 0"
export OMP_NUM_THREADS=1
sweep() { "$BORA" run -m sweep=joblib $SHAPE "$@"; }
all=$(tr ' ' , <<< "$TAUS")

sweep hydra.sweep.dir=$OUT/rule name=rule prior.parameterization=centered tau=$all
sweep hydra.sweep.dir=$OUT/constant name=constant prior.parameterization=centered optim.lr=1e-3 tau=$all
sweep hydra.sweep.dir=$OUT/noncentered name=noncentered optim.lr=1e-3 tau=$all
# What breaks at τ = 10⁴, where the rule says 0.1: the same, and learning rates between.
sweep hydra.sweep.dir=$OUT/rate name=rate prior.parameterization=centered,noncentered \
  optim.lr=1e-4,3e-3,1e-2,1e-1 tau=10000
# A falling path: each τ starts from the solution of the one before.
from=null
for tau in $TAUS; do
  "$BORA" run $SHAPE name=path optim.lr=1e-3 tau=$tau init_from="$from" "hydra.run.dir='$OUT/path/tau=$tau,seed=0'" || exit
  from="'$OUT/path/tau=$tau,seed=0'"
done

"$BORA" report $OUT --archive $OUT/runs.csv.gz
"$(dirname "$BORA")/python" experiments/optimiser/study.py
