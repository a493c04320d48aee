# Two commands: `make demo` and `make test`. Each makes its own environment in .venv the first time. Tools are run as
# modules: where .venv shares the packages of the system's Python, those it has are there, but not their scripts.
PYTHON ?= python3
python := .venv/bin/python

.PHONY: demo test lint slow wheel clean

demo: .venv/.core
	$(python) -m segue demo

imports = $(python) -c "from importlinter.cli import lint_imports_command as lint; lint()"

# What most tests need is compiled here once, not in each of their processes: the engine, products, and what counts.
ready = $(python) -c "import segue; from segue.kernels.cpu import engine, products; engine.load_engine(); \
	segue.fit(['abc' * 40] * 20, steps=1, quiet=True)"

test: export PYTHONDONTWRITEBYTECODE =  # else each of the tests' processes compiles all of the sources anew
test: .venv/.dev  # types are checked beside the rest
	$(python) -m ruff check .
	@$(python) -m mypy & types=$$!; { $(imports) && $(ready) && \
		OMP_NUM_THREADS=1 $(python) -m pytest -q -n 2 --dist loadfile --max-worker-restart 2; }; tests=$$?; \
		wait $$types && exit $$tests

lint: .venv/.dev
	$(python) -m ruff check .
	$(imports)
	$(python) -m mypy

slow: .venv/.dev
	$(python) -m pytest -q -m slow

wheel: .venv/.dev
	$(python) -m build --wheel

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

.venv/.core: pyproject.toml tools/environment.py
	$(PYTHON) tools/environment.py

.venv/.dev: pyproject.toml tools/environment.py
	$(PYTHON) tools/environment.py dev
