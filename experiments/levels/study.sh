#!/usr/bin/env bash
# Does a level above the task help? Modules of Python packages × opt_mini; members of parliament with their parties and
# Shakespeare's characters with their plays × SmolLM2-135M.
# Run from the repository root after `make smollm2`; DATA is the folder of the tables of speeches. Run it again to resume. The runs without a level of folketing are experiments/folketing's in bfloat16.
set -u
DATA=${DATA:?give the folder of folketing.csv.xz and shakespeare.csv.xz: DATA=FOLDER experiments/levels/study.sh}
OUT=${OUT:-experiments/levels}
BORA=${BORA:-.venv/bin/bora}
PYTHON=${PYTHON:-.venv/bin/python}
SEEDS=${SEEDS:-0,1,2}
sweep() { "$BORA" run -m sweep=joblib seed=$SEEDS "$@"; }

# The 25 largest of them are taken.
MODULES=[asyncio.base_events,asyncio.events,asyncio.locks,asyncio.proactor_events,asyncio.selector_events,asyncio.sslproto,asyncio.streams,asyncio.tasks,asyncio.transports,asyncio.unix_events,asyncio.windows_events,email._header_value_parser,email.header,email.headerregistry,email.message,xml.dom.expatbuilder,xml.dom.minidom,xml.dom.pulldom,xml.dom.xmlbuilder,xml.etree.ElementTree,xml.sax.expatreader,xml.sax.saxutils,xml.sax.xmlreader,unittest.case,unittest.loader,unittest.mock,http.client,http.cookiejar,http.cookies,http.server,multiprocessing.connection,multiprocessing.context,multiprocessing.managers,multiprocessing.pool,multiprocessing.queues,multiprocessing.synchronize,urllib.parse,urllib.request]
PACKAGES="name=packages data.modules=$MODULES data.documents_per_task=60 data.min_documents=20 data.min_characters=60
  data.max_tokens=48 trainer.max_epochs=12 optim.patience=3 optim.lr=1e-3"
sweep $PACKAGES hydra.sweep.dir=$OUT/packages/one tau=1,10,100
sweep $PACKAGES hydra.sweep.dir=$OUT/packages/two data.levels=[package] 'tau=[10,1],[10,10],[100,10],[100,100]'
sweep $PACKAGES hydra.sweep.dir=$OUT/packages/learned data.levels=[package] tau=learn

SIZES=[60,57,51,48,30,30,29,27,23,22,21,20,20,19,18,18,18,17,16,16,16,16,15,14,14]
PARTIES="name=parties data=table data.path=$DATA/folketing.csv.xz model=smollm2_135m model.dtype=bfloat16 optim.lr=1e-3 data.n_tasks=25
  data.min_documents=60 data.documents_per_task=$SIZES data.min_characters=40 data.max_tokens=48 data.batch_size=8
  optim.patience=2 trainer.max_epochs=10"
sweep $PARTIES hydra.sweep.dir=$OUT/parties/two data.levels=[party] 'tau=[10000,10000]'

# The four plays with the most characters of 24 speeches and more; of those characters the 30 with the most.
"$PYTHON" - "$DATA/shakespeare.csv.xz" "$OUT/plays.csv" <<'END'
import sys
import pandas as pd
PLAYS = [
    "The Merry Wives of Windsor", "The History of Troilus and Cressida", "The Tragedy of King Lear", "The Tempest"
]
table = pd.read_csv(sys.argv[1])
table[table["play"].isin(PLAYS)].to_csv(sys.argv[2], index=False)
END
PLAYS="name=plays data=table data.path=$OUT/plays.csv data.name=shakespeare model=smollm2_135m model.dtype=bfloat16 optim.lr=1e-3
  data.n_tasks=30 data.documents_per_task=24 data.min_characters=40 data.max_tokens=48 data.batch_size=8 optim.patience=2
  trainer.max_epochs=8"
sweep $PLAYS hydra.sweep.dir=$OUT/plays/one tau=10000
sweep $PLAYS hydra.sweep.dir=$OUT/plays/two data.levels=[play] 'tau=[10000,10000]'
sweep $PLAYS hydra.sweep.dir=$OUT/plays/learned data.levels=[play] tau=learn

"$BORA" report $OUT --archive $OUT/runs.csv.gz
