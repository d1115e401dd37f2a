# Two commands matter: `make demo` and `make test`. Both make the environment that they need, in .venv.
# Another Python: `PYTHON=python3.12 make demo`. No colours: `NO_COLOR=1 make demo`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A Python that was asked for replaces an environment of another version; the default takes the one that is there.
SET_UP := $(PYTHON) scripts/setup_env.py --venv $(VENV) $(if $(filter file,$(origin PYTHON)),--keep-python)

# Most tests wait for servers and workers, so more of them than cores run side by side.
JOBS ?= 4

.DEFAULT_GOAL := help
.PHONY: help demo test docs strikes e2e chaos chaos-peers chaos-beats fuzz matrix lint bench setup clean

help:  ## list the targets
	@echo "make TARGET, with TARGET one of"
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-11s %s\n", $$1, $$2 }'

demo:  ## two workers, one etcd: locks at work, a kill -9, a timeline (half a minute)
	@$(SET_UP) demo
	@$(BIN)/python -m examples.demo

test:  ## all tests that need no root, then lint (minutes)
	@$(SET_UP) test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile
	@$(MAKE) --no-print-directory lint

docs:  ## the documentation as a site in build/site; a broken link or a missing name fails (10 s)
	@$(SET_UP) docs
	@test -x $(BIN)/sphinx-build || { echo "make docs needs Python 3.11 or later: PYTHON=python3.12 make docs" >&2; exit 1; }
	$(BIN)/sphinx-build -q -W --keep-going -c docs . build/site
	@echo "open build/site/index.html"

e2e:  ## tests on containers: real workers, etcd members that fail, the compose stack (needs Docker)
	@$(SET_UP) test
	@scripts/docker_images.sh
	$(BIN)/python -m pytest tests/e2e

matrix:  ## the tests on every Python, Celery and etcd that we support, by nox (half an hour; `nox -t ci`: the part CI runs)
	@$(SET_UP) test
	$(BIN)/nox -t matrix

simulate:  ## all of it in virtual time, SEEDS=n fresh seeds (200) or ARGS="--seed N" once more, with its schedule (a minute)
	@$(SET_UP) test
	$(BIN)/python -m tests.simulation $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

strikes:  ## a time limit on every way to every place of all that takes, holds and releases a lock (minutes; ARGS=message)
	@$(SET_UP) test
	$(BIN)/python -m tests.strikes --deep $(ARGS)

chaos:  ## faults of all kinds, of locks and of messages, on real workers and servers, 20 seeds each (ARGS=--short: 90 s)
	@$(SET_UP) test
	$(BIN)/python -m tests.chaos $(ARGS)

chaos-peers:  ## the same, side by side with what others use (an hour; Go's Mutex needs go on PATH)
	@$(SET_UP) test
	$(BIN)/python -m tests.chaos --peers $(ARGS)

fuzz:  ## what a server may say to us, mutated, for two minutes (ARGS=SECONDS; led by coverage where atheris has a wheel)
	@$(SET_UP) test
	@$(BIN)/python -c "import atheris" 2> /dev/null || $(BIN)/python -m pip install -q --only-binary :all: atheris==3.0.0 || true
	$(BIN)/python -m tests.fuzz $(ARGS)

chaos-beats:  ## real beats under faults, and what became of each tick (4 minutes; ARGS=--short: half a minute)
	@$(SET_UP) test
	$(BIN)/python -m tests.chaos.beats $(ARGS)

lint:  ## ruff, mypy --strict and the import contracts
	@$(SET_UP) test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy -p examples.demo
	$(BIN)/lint-imports --no-cache

bench:  ## all figures beside all peers, tables and .bench/ (20 minutes; QUICK=1: below 3, shows that it works)
	@$(SET_UP) test
	@$(BIN)/python -m benchmarks $(if $(QUICK),--quick) --json .bench/results.json --plot .bench/results.svg

setup:  ## only make .venv, with all that tests need
	@$(SET_UP) test

clean:  ## remove .venv and what tools left behind
	rm -rf $(VENV) .nox build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
