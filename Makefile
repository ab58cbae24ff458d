# make quickstart   train, deploy and predict on real digits, on this machine (about a minute after the install)
# make digits       write scikit-learn's digits as images into digits/, one folder a class
# make test         the test suite, on 2 cores; make test-slow adds the checks that take minutes
# make test-fast    the tests that need no server and no real Learner, in two minutes
# make test-kills   kill every process of every kind of job at random steps, KILLS times each (40), for hours
# make test-load    REQUESTS to an endpoint whose workers are killed, a batch job of OBJECTS, 8 processes for MINUTES
# make test-docker  build the images and test their containers, where there is a Docker engine
# make test-ray    install Ray Serve into an environment beside this one, .venv/ray, and test endpoints on it
# make test-servers the same requests to TorchServe, a .mar and Ray Serve, whose answers are compared; ten thousand to each
# make test-triton  install a Triton server without Docker and test what it makes of our model repositories
# make test-page   install Gradio and Playwright into an environment beside this one, .venv/page, and try the page in Chromium
# make test-openvino install OpenVINO and test it as an engine
# make test-versions test source/ under torch 2.6 and the newest one; TORCH_PAIRS names others (tests/test_versions.py)
# make check        lint, format and types
# make mypy         the types of fastmaker and fastmaker.local
# make docs         write the reference of commands anew and build the pages into site/
# make clean        remove .venv and what the tools left behind

# Python 3.10 to 3.13: `python3` if it is one, else the first of these on PATH; `make PYTHON=...` names another.
SUITABLE = import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.10; do \
	$$python -c '$(SUITABLE)' 2>/dev/null && echo $$python && break; done)
NEEDED = no Python 3.10 to 3.13 with venv and pip (Debian: apt install python3 python3-venv); make PYTHON=... names one
BIN = .venv/bin
INSTALLED = .venv/.installed

.PHONY: quickstart digits test test-fast test-slow test-kills test-load test-docker test-page test-ray test-servers test-triton \
	test-openvino test-versions \
	check mypy docs clean

quickstart: $(INSTALLED)
	$(BIN)/fastmaker quickstart

digits: $(INSTALLED)
	$(BIN)/python -c "from pathlib import Path; from fastmaker.jobs.digits import write_digits; write_digits(Path('digits'))"

# Files of fast tests alone come last, so that the processes end together. One more of these than cores: the tests of
# servers and jobs often wait.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m fast

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

KILLS = 40
test-kills: $(INSTALLED)
	FASTMAKER_KILLS=$(KILLS) $(BIN)/python -m pytest --capture=no -m slow tests/jobs/local/test_kills.py tests/jobs/local/test_store.py

REQUESTS = 4000
OBJECTS = 2000
MINUTES = 0.5
test-load: $(INSTALLED)
	FASTMAKER_REQUESTS=$(REQUESTS) FASTMAKER_OBJECTS=$(OBJECTS) FASTMAKER_MINUTES=$(MINUTES) \
		$(BIN)/python -m pytest --capture=no -m slow tests/jobs/local/test_load.py

test-docker: $(INSTALLED)
	$(BIN)/python -m pytest -m docker

# Its Python has what the other has, and Ray.
RAY = .venv/ray/bin/python
PACKAGES_OF = -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
WITH_RAY = .venv/ray/.installed
$(WITH_RAY): $(INSTALLED)
	test -x $(RAY) || $(BIN)/python -m venv .venv/ray
	$(RAY) -m pip install --quiet --constraint constraints.txt 'ray[data,serve]'
	echo "import site; site.addsitedir('$$($(BIN)/python $(PACKAGES_OF))')" > $$($(RAY) $(PACKAGES_OF))/beside.pth
	touch $@

test-ray: $(WITH_RAY)
	$(RAY) -m pytest -m ray

# TorchServe's program is that of the other environment.
test-servers: $(WITH_RAY)
	PATH="$$PATH:$(CURDIR)/$(BIN)" $(RAY) -m pytest -m slow tests/jobs/local/serving/test_abuse.py

# Its Python has what the other has, but for Pillow, of which Gradio takes an older one; Playwright drives the Chromium
# that is on PATH, and axe looks for barriers.
PAGE = .venv/page/bin/python
test-page: $(INSTALLED)
	test -x $(PAGE) || $(BIN)/python -m venv .venv/page
	echo "import site; site.addsitedir('$$($(BIN)/python $(PACKAGES_OF))')" > $$($(PAGE) $(PACKAGES_OF))/beside.pth
	$(PAGE) -m pip install --quiet --constraint constraints.txt gradio playwright axe-core-python captum
	$(PAGE) -m pytest -m browser

test-triton: $(INSTALLED)
	$(BIN)/python -m pytest -m triton

test-openvino: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[openvino]'
	$(BIN)/python -m pytest -m openvino

# Shows what the tests that it starts print: they take minutes.
test-versions: $(INSTALLED)
	$(BIN)/python -m pytest -m versions --capture=no

check: $(INSTALLED) mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot see through an editable install: it reads links that lie as setup.cfg maps folders to packages.
PACKAGES = .mypy_cache/packages/fastmaker
mypy: $(INSTALLED)
	rm -rf $(PACKAGES) && mkdir -p $(PACKAGES)
	ln -s $(CURDIR)/source/fastmaker/* $(CURDIR)/jobs $(CURDIR)/jobs/local $(PACKAGES)/
	$(BIN)/python -m mypy

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python docs/make_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Built when it is missing or the requirements changed.
$(INSTALLED): setup.cfg constraints.txt pyproject.toml
	@test -x $(BIN)/python || $(or $(PYTHON),false) -c '$(SUITABLE)' 2>/dev/null || { echo "$(NEEDED)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .hypothesis .ruff_cache site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
