# make demo      train on the built-in data set, evaluate, draw          make lint      ruff, pyright
# make docs      the documentation as a site, in site/
# make test      all tests but the slow and GPU ones                     make test-all  the slow ones too
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: venv demo docs test test-all test-gpu lint format clean
.DEFAULT_GOAL := venv

venv: $(VENV)/.installed

# The stamp makes installation run again when the requirements change.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fast,dev]"
	touch $@

demo: venv
	rm -rf runs/demo
	$(PY) tools/train_det.py --cfg configs/demo.yaml --out runs/demo

docs: venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo "site/index.html"

test: venv
	$(PY) -m pytest -q -n auto --dist loadfile

test-all: venv
	$(PY) -m pytest -q -n auto --dist worksteal -m "not gpu"

test-gpu: venv
	$(PY) -m pytest -q -m gpu

lint: venv
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

format: venv
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) runs site
