#!/usr/bin/env bash
# stdlib × opt_mini: the whole range of τ in both parameterisations, the prior's estimator, and the default.
# Run from the repository root; three to four hours on 2 cores. Run it again to resume.
set -u
OUT=${OUT:-experiments/stdlib}
BORA=${BORA:-.venv/bin/bora}
SHAPE="data.documents_per_task=240 data.max_tokens=48 trainer.max_epochs=12 optim.patience=3"
sweep() { "$BORA" run -m sweep=joblib $SHAPE "$@"; }

# The grid. At τ ≥ 10⁵ the paper's rule (centered) means a learning rate of 1 and more.
GRID="data.order=shuffled prior.estimator=dense tau=0,1,10,100,1000,10000,100000,1000000,inf"
for seed in 0 1 2; do
  sweep $GRID seed=$seed name=stdlib-noncentered hydra.sweep.dir=$OUT/grid/noncentered optim.lr=1e-3
  sweep $GRID seed=$seed name=stdlib-paper-rule hydra.sweep.dir=$OUT/grid/centered prior.parameterization=centered
done

# The prior by document against the whole prior, and bucketed against shuffled batches; dense and shuffled is the grid.
estimator() { sweep name=stdlib-estimator tau=10,1000 seed=0,1 "$@"; }
estimator hydra.sweep.dir=$OUT/estimator/by_document prior.estimator=by_document data.order=bucketed,shuffled
estimator hydra.sweep.dir=$OUT/estimator/dense prior.estimator=dense data.order=bucketed

# What `make run` trains, at three τ.
"$BORA" run -m tau=0,100,inf hydra.sweep.dir=$OUT/default

"$BORA" report $OUT --archive $OUT/runs.csv.gz
