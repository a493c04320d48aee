# Two commands: `make demo` and `make test`. Each makes its own environment in .venv the first time.
PYTHON ?= python3
bin := .venv/bin

.PHONY: demo test lint slow wheel clean

demo: .venv/.core
	$(bin)/segue demo

# What most tests need is compiled here once, not in each of their processes: the engine, and what counts.
ready = $(bin)/python -c "import segue; from segue.kernels.cpu import engine; engine.ready(); \
	segue.fit(['abc' * 40] * 20, steps=1, quiet=True)"

test: .venv/.dev  # types are checked beside the rest
	$(bin)/ruff check .
	@$(bin)/mypy & types=$$!; { $(bin)/lint-imports && $(ready) && \
		OMP_NUM_THREADS=1 $(bin)/pytest -q -n 2 --dist loadfile --max-worker-restart 2; }; tests=$$?; \
		wait $$types && exit $$tests

lint: .venv/.dev
	$(bin)/ruff check .
	$(bin)/lint-imports
	$(bin)/mypy

slow: .venv/.dev
	$(bin)/pytest -q -m slow

wheel: .venv/.dev
	$(bin)/python -m build --wheel

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

.venv/.core: pyproject.toml tools/environment.py
	$(PYTHON) tools/environment.py

.venv/.dev: pyproject.toml tools/environment.py
	$(PYTHON) tools/environment.py dev
