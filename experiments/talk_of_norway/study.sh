#!/usr/bin/env bash
# The paper's experiment, 25 members of the Norwegian parliament × OPT-350m at the τ of Table 1 and at ∞: as the paper's
# text has it, then as its published code has it. It downloads the corpus and the model, says how long the runs take,
# and trains them one after another.
# Run from the repository root on a machine with a GPU. Run it again to resume.
#
#   DATA=ton.csv     a copy of the corpus
#   SEEDS=0,1,2      more than one seed
#   TRAINER=cpu      without a GPU; arguments are further overrides of each run
set -eu
OUT=${OUT:-experiments/talk_of_norway}
BORA=${BORA:-.venv/bin/bora}
WITH=("trainer=${TRAINER:-gpu}" ${DATA:+"data.path=$DATA"} "$@")

for experiment in paper reference; do
  "$(dirname "$BORA")/python" experiments/talk_of_norway/fetch.py experiment=$experiment "${WITH[@]}"
  echo "experiment=$experiment, each run:"
  "$BORA" doctor experiment=$experiment tau=100 "${WITH[@]}" --measure
done

# A run that diverges (at τ = 10⁴ the rule's learning rate is 0.1) does not keep the others back; a signal does.
for experiment in paper reference; do
  # Table 1's τ; and one model for all, which two of the claims are about.
  "$BORA" run -m experiment=$experiment tau=0,1,10,100,1000,10000,inf seed="${SEEDS:-0}" "${WITH[@]}" \
    hydra.sweep.dir=$OUT/$experiment || [ $? -lt 128 ] || exit 1
done

"$BORA" report $OUT --archive $OUT/runs.csv.gz
"$BORA" report $OUT
