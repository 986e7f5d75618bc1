#!/usr/bin/env bash
# A character's reply to the line before: Shakespeare × SmolLM2-135M-Instruct through its chat template.
# Run from the repository root after `make smollm2`; DATA is the table of speeches (shakespeare.csv.xz). About an hour on
# 2 cores. Run it again to resume.
set -u
DATA=${DATA:?give the table of speeches: DATA=shakespeare.csv.xz experiments/replies/study.sh}
OUT=${OUT:-experiments/replies}
BORA=${BORA:-.venv/bin/bora}
PYTHON=${PYTHON:-.venv/bin/python}
TABLE=$OUT/replies.csv.gz
[ -e "$TABLE" ] || PYTHONPATH=. $PYTHON experiments/replies/table.py "$DATA" "$TABLE"
$BORA run -m sweep=joblib name=replies hydra.sweep.dir=$OUT/grid data=table data.path=$TABLE data.name=shakespeare \
  "data.prompt='{cue}'" data.text=reply data.chat_template=true data.n_tasks=8 data.documents_per_task=48 \
  data.min_characters=40 data.max_tokens=112 data.batch_size=8 model=smollm2_135m model.dtype=bfloat16 optim.lr=1e-3 \
  optim.patience=2 trainer.max_epochs=5 tau=10000,0,inf seed=0,1,2 "$@"

# What they answer to the cues of the test: chrF, and a page to read, below each middle run's folder.
for seed in 0 1 2; do
  middle="$OUT/grid/tau=10000,seed=$seed"
  [ -e "$middle/evaluation/test/summary.json" ] && continue
  PYTHONPATH=. $PYTHON experiments/replies/table.py "$TABLE" "$middle" $OUT/test.csv.gz
  $BORA evaluate "$middle" --data $OUT/test.csv.gz --text reply --task task --answers --max-new-tokens 40 \
    --beside "$OUT/grid/tau=0,seed=$seed" --beside "$OUT/grid/tau=inf,seed=$seed"
done

$BORA report $OUT --archive $OUT/runs.csv.gz
