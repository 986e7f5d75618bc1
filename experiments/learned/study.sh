#!/usr/bin/env bash
# tau=learn beside the grids of three corpora: functions and bodies of functions of the standard library × opt_mini, and
# folketing × SmolLM2-135M, each with the grid's own settings.
# Run from the repository root after `make smollm2`; DATA is the table of speeches. About an hour and a half on 2 cores.
# Run it again to resume.
set -u
DATA=${DATA:?give the table of speeches: DATA=folketing.csv.xz experiments/learned/study.sh}
OUT=${OUT:-experiments/learned}
BORA=${BORA:-.venv/bin/bora}
PYTHON=${PYTHON:-.venv/bin/python}
learn() { "$BORA" run -m sweep=joblib tau=learn seed=0,1,2 optim.lr=1e-3 name=$1-learned hydra.sweep.dir=$OUT/$1 "${@:2}"; }

learn stdlib data.documents_per_task=240 data.max_tokens=48 trainer.max_epochs=12 optim.patience=3

PROMPT='{signature}\n    """{summary}"""\n'
learn bodies "data.prompt='$PROMPT'" data.text=body data.documents_per_task=100 data.max_tokens=128 \
  data.min_characters=40 trainer.max_epochs=12 optim.patience=3

SIZES=[60,57,51,48,30,30,29,27,23,22,21,20,20,19,18,18,18,17,16,16,16,16,15,14,14]
learn folketing data=table data.path=$DATA model=smollm2_135m model.dtype=bfloat16 data.n_tasks=25 \
  data.min_documents=60 data.documents_per_task=$SIZES data.min_characters=40 data.max_tokens=48 data.batch_size=8 \
  optim.patience=2 trainer.max_epochs=10

# Few and many tasks, small and large ones, on functions: tau=learn and a grid.
FILES=$(PYTHONPATH=. $PYTHON experiments/learned/modules.py)
sizes() { "$BORA" run -m sweep=joblib tau=learn,10,100,1000,inf optim.lr=1e-3 data.max_tokens=48 trainer.max_epochs=12 \
  optim.patience=3 name=sizes hydra.sweep.dir=$OUT/sizes/$1 "${@:2}"; }
sizes 3x500 data.modules=[asyncio,email,unittest] data.documents_per_task=500 seed=0,1
sizes 3x12 data.modules=[asyncio,email,unittest] data.documents_per_task=12 data.min_documents=3 seed=0,1,2
sizes 25x2 data.modules=[$FILES] data.documents_per_task=6 data.min_documents=5 data.min_characters=60 seed=0
PYTHONPATH=. $PYTHON experiments/learned/thousand.py $OUT/thousand.csv
sizes 1000x3 data=table data.path=$OUT/thousand.csv data.n_tasks=null data.documents_per_task=6 data.min_documents=5 seed=0

"$BORA" report $OUT --archive $OUT/runs.csv.gz
