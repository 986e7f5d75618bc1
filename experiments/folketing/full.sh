#!/usr/bin/env bash
# folketing × SmolLM2-135M at the paper's size: all speeches of 25 members of the Danish parliament (126 to 514 to train
# on; the paper 110 to 477), 128 tokens, batches of 64, τ from 0 to ∞ × three seeds; then the paper's rule.
# Run from the repository root after `make smollm2`; DATA is the table of speeches. It needs no network.
# About 40 minutes on one H100, three runs at a time, from what five of the runs took.
# Stop it when you like (Ctrl-C, `timeout 9m experiments/folketing/full.sh`) and run it again to resume.
#
#   SHARE=half            half of each member's speeches and one seed: about a day on 2 cores
#   TRAINER=gpu           refuse to run on the processor; by default bora takes a GPU where torch sees one
#   JOBS=4                runs at a time
#   BORA="python3 -m bora"  without a .venv
#   SEEDS="0" TAUS="0 inf"  fewer runs; arguments are further overrides of each run
set -eu
DATA=${DATA:?give the table of speeches: DATA=folketing.csv.xz experiments/folketing/full.sh}
SHARE=${SHARE:-all}
OUT=${OUT:-experiments/folketing/$SHARE}
BORA=${BORA:-.venv/bin/bora}
TAUS=${TAUS:-10000 0 inf 100000 1000 1000000 100}
RULE_SEEDS=${RULE_SEEDS-0}
CORES=$(nproc)
JOBS=${JOBS:-$((CORES < 6 ? (CORES + 1) / 2 : 3))}  # on a GPU each takes about 22 GB: of four on 80 GB three ran out of memory
case $SHARE in
  all) SEEDS=${SEEDS:-0 1 2} SIZES= ;;
  half) SEEDS=${SEEDS:-0}
    SIZES=data.documents_per_task=[515,291,250,245,237,206,203,199,194,187,181,174,173,171,162,155,152,146,142,138,134,129,128,127,125] ;;
  *) echo "SHARE=$SHARE: give all or half" >&2; exit 2 ;;
esac
# A validation NLL over 2,386 documents that is worse twice in a row is no accident: patience 2. Thirty epochs are there
# to end a slow learning rate, not to end the others.
SHAPE="data=table data.path=$DATA $SIZES data.max_tokens=128 data.batch_size=64 data.eval_batch_size=128
  model=${MODEL:-smollm2_135m} model.dtype=bfloat16 trainer.accelerator=${TRAINER:-auto} trainer.max_epochs=30
  optim.patience=2 logger=none"
MORE=("$@")
export HF_HUB_OFFLINE=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((CORES > JOBS ? CORES / JOBS : 1))}  # the jobs share the cores

# FOLDER OVERRIDE …, a run a line; first what says most.
list() {
  for seed in $SEEDS; do
    for tau in $TAUS; do echo "grid/tau=$tau,seed=$seed name=folketing-$SHARE optim.lr=1e-3 tau=$tau seed=$seed"; done
  done
  for seed in $RULE_SEEDS; do
    for tau in 1000 100 0; do
      echo "rule/tau=$tau,seed=$seed name=folketing-$SHARE-rule prior.parameterization=centered tau=$tau seed=$seed"
    done
  done
}
mapfile -t RUNS < <(list)

is_finished() { [ -e "$OUT/${1%% *}/summary.json" ]; }  # of a line of RUNS
count() { for run in "${RUNS[@]}"; do ! is_finished "$run" || echo; done | wc -l; }

train() {  # FOLDER OVERRIDE …
  trap : TERM  # bora has the signal too: wait until it has saved
  local folder=$OUT/$1 code=0
  mkdir -p "$folder"
  $BORA run $SHAPE "${@:2}" "${MORE[@]}" "hydra.run.dir='$folder'" >> "$folder.log" 2>&1 < /dev/null || code=$?
  if [ $code = 0 ]; then
    echo "$1: $(grep -sE '"(best_epoch|seconds|val_perplexity|test_perplexity)"' "$folder/summary.json" | tr -d '\n "')"
  else
    echo "$1: ended with $code; $folder.log has why"
    [ $code -ge 128 ] || tail -n 3 "$folder.log"
  fi
  return $code
}

archive() { $BORA report "$OUT" --archive "$OUT/full.csv.gz"; }

stop() {
  trap '' TERM INT
  echo "stopping: the runs save what they have"
  for job in $(jobs -p); do kill -TERM -- "-$job" || true; done
  wait
  echo "$(count) of ${#RUNS[@]} runs are finished; run it again to resume"
  archive || true
  exit 143
}

echo "${#RUNS[@]} runs, $(count) of them finished; $JOBS at a time"
set -m  # a process group for each job, which a signal can reach
trap stop TERM INT
running=0 failed=0
for run in "${RUNS[@]}"; do
  is_finished "$run" && continue
  if [ $running = "$JOBS" ]; then
    wait -n || failed=1
    running=$((running - 1))
  fi
  train $run &
  running=$((running + 1))
done
while [ $running != 0 ]; do
  wait -n || failed=1
  running=$((running - 1))
done
archive || failed=1
exit $failed
