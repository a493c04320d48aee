# Two commands: `make demo` and `make test`. Each makes its own environment in .venv the first time.
PYTHON ?= python3
bin := .venv/bin

.PHONY: demo test lint slow wheel clean

demo: .venv/.core
	$(bin)/segue demo

test: .venv/.dev  # types are checked beside the tests
	$(bin)/ruff check .
	$(bin)/lint-imports
	@$(bin)/mypy & types=$$!; OMP_NUM_THREADS=1 $(bin)/pytest -q -n 2 --dist loadfile --max-worker-restart 2; tests=$$?; \
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
	$(bin)/python -c "from segue.kernels.cpu import engine; engine.ready()"  # compiled here, or in each test process
