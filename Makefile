PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# The versions to install. In a new environment, CONSTRAINTS=/dev/null takes the newest.
CONSTRAINTS ?= constraints.txt

.PHONY: help demo test docs fuzz torture lint format clean

help:
	@echo "make demo    train BN and MetaBIN on the built-in synthetic set, compare them on an unseen domain"
	@echo "make test    lint, type check and tests"
	@echo "make docs    build the pages as a site in .cache/site; a broken link fails"
	@echo "make fuzz    more than 10,000 made-up cases for samplers, readers, overrides and metrics; some 10 minutes"
	@echo "make torture disturb a training by signals and full disks, and compare its bits"
	@echo "make format  rewrite the code in the project's style"
	@echo "make clean   remove the environment and all caches"

demo: $(VENV)/.installed
	$(PY) -m experiments.demo

test: lint
	$(PY) -m pytest -n logical --maxprocesses 4 --dist loadfile

docs: $(VENV)/.installed-dev
	$(PY) -m pip install --quiet -e '.[docs]'
	rm -rf .cache/docs
	mkdir -p .cache/docs
	git ls-files -z '*.md' '*.png' '*.py' '*.ipynb' LICENSE CITATION.cff | xargs -0 cp --parents -t .cache/docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "open .cache/site/index.html"

fuzz: $(VENV)/.installed-dev
	CASES=800 $(PY) -m pytest tests/properties

torture: $(VENV)/.installed-dev
	$(PY) tests/torture.py

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy metabin_jax

format: $(VENV)/.installed-dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache

$(PY):
	$(PYTHON) -m venv $(VENV)

# Stamps: nothing is installed again until pyproject.toml or the constraints change. `| $(PY)` only requires that the
# environment exists: it is older than its stamps and must not invalidate them.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(PY)
	$(PY) -m pip install --quiet -e . -c $(CONSTRAINTS)
	touch $@

$(VENV)/.installed-dev: pyproject.toml $(CONSTRAINTS) | $(PY)
	$(PY) -m pip install --quiet -e '.[test,dev]' -c $(CONSTRAINTS)
	touch $(VENV)/.installed $@
