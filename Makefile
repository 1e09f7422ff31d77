# Every target sets itself up: `make demo` or `make test` on a fresh machine is all there is to type.
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(if $(shell command -v uv),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install --quiet --disable-pip-version-check)

.PHONY: demo test test-gpu-interpreted check bench forget-kernels clean
.DEFAULT_GOAL := demo

$(BIN)/python:
	python3 -m venv $(VENV)

$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -c constraints.txt -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.base

demo: $(VENV)/.base  ## six methods on real images; writes report.html
	$(BIN)/thriftgrad demo

test: $(VENV)/.dev  ## the whole suite
	$(BIN)/python -m pytest -n 2 --dist loadgroup

TRITON := $(VENV)/triton
$(TRITON)/.installed: constraints.txt | $(VENV)/.dev
	$(INSTALL) -c constraints.txt --target $(TRITON) triton
	touch $@

test-gpu-interpreted: $(TRITON)/.installed  ## the GPU kernels against their definition, on the CPU; installs triton, 1 GB
	PYTHONPATH=$(TRITON) TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/gpu --timeout 600

check: $(VENV)/.dev  ## lint, format, types, then the suite
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadgroup

bench: $(VENV)/.base  ## encode and decode against a memory copy
	$(BIN)/python benchmarks/codec.py

forget-kernels:  ## after an edit in kernels/cpu: what numba compiled of the sources before it
	rm -f src/thriftgrad/kernels/cpu/__pycache__/*.nb[ci]

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
