#!/usr/bin/env bash
# How many epochs does each way of training need, at each τ? stdlib × opt_mini, 25 modules of 30 training functions.
# Run from the repository root; about an hour and a half a seed on 2 cores. What is finished is not done again.
set -u
OUT=${OUT:-experiments/optimiser/runs}
SHAPE="data.documents_per_task=60 data.max_tokens=48 trainer.max_epochs=40 optim.patience=8"
TAUS="inf 1000000 100000 10000 1000 100 10 1 0"
python=${BORA:-.venv/bin/python}
export OMP_NUM_THREADS=1
all=$(tr ' ' , <<< "$TAUS")

sweep() { "$python" -m bora.run -m sweep=joblib $SHAPE seed=$seed "$@"; }

# A falling path: each τ starts from the solution of the one before. It cannot be split, so it runs beside the others.
path() {
  local from=null tau
  for tau in $TAUS; do
    "$python" -m bora.run $SHAPE seed=$seed name=path optim.lr=1e-3 tau=$tau init_from=$from \
      "hydra.run.dir='$OUT/path/tau=$tau,seed=$seed'" || return
    from="'$OUT/path/tau=$tau,seed=$seed'"
  done
}

for seed in 0 1; do
  path > "$OUT.path.log" 2>&1 &
  sweep hydra.launcher.n_jobs=1 hydra.sweep.dir=$OUT/rule name=rule prior.parameterization=centered tau=$all
  wait
  sweep hydra.sweep.dir=$OUT/constant name=constant prior.parameterization=centered optim.lr=1e-3 tau=$all
  sweep hydra.sweep.dir=$OUT/noncentered name=noncentered optim.lr=1e-3 tau=$all
  # What breaks at τ = 10⁴, where the rule says 0.1: the same, and learning rates between.
  sweep hydra.sweep.dir=$OUT/rate name=rate prior.parameterization=centered,noncentered \
    optim.lr=1e-4,3e-3,1e-2,1e-1 tau=10000
done
