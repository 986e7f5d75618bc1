#!/usr/bin/env bash
# Everything that a GPU is measured by, in one table and one JSON file; within 8 minutes on an H100 or H200.
#
#     experiments/bench/gpu.sh [--quick] [NAME=VALUE …]      settings: experiments/bench/gpu.py
#
# It needs the repository and its dependencies: no network, no W&B, no model hub. PYTHON is the interpreter that has
# them: .venv's, or python3. --quick is the same at small sizes, on a CPU too, to see that all of it runs.
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-$(command -v .venv/bin/python || echo python3)}
if [ "${1:-}" = --quick ]; then
  shift
  set -- quick=true "$@"
fi
exec env PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" experiments/bench/gpu.py "$@"
