#!/usr/bin/env bash
# From a function's signature and the first line of its docstring to its body: 25 Python modules × opt_mini, the range of τ.
# Run from the repository root; 25 minutes on 2 cores. Run it again to resume.
set -u
OUT=${OUT:-experiments/answers}
BORA=${BORA:-.venv/bin/bora}
PROMPT='{signature}\n    """{summary}"""\n'
$BORA run -m sweep=joblib name=stdlib-bodies hydra.sweep.dir=$OUT/grid "data.prompt='$PROMPT'" data.text=body \
  data.documents_per_task=100 data.max_tokens=128 data.min_characters=40 trainer.max_epochs=12 optim.patience=3 optim.lr=1e-3 \
  tau=0,10,100,1000,inf seed=0,1,2 "$@"

$BORA report $OUT --archive $OUT/runs.csv.gz
