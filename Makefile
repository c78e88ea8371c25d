# For working on tinygpt, in an environment with: pip install -e '.[test,dev,examples]'
PYTHON ?= python
DEBUG := build/test-debug

.PHONY: build check test test-debug mutants bench lint annotate notebooks docs docs-english docs-messages clean

build:
	TINYGPT_EXT=require $(PYTHON) setup.py build_ext --inplace

# What to run while working: under a minute on two cores. Everything else is `make test`.
check: build lint
	TINYGPT_EXT=require $(PYTHON) -m pytest -q --fast

test: build
	TINYGPT_EXT=require $(PYTHON) -m pytest

# The loops of the kernels work on pointers, which Cython's bounds checks don't see. AddressSanitizer sees every access,
# those of the C headers included. Built and tested in a copy, so that the fast build stays as it is. gcc on Linux.
# - Its library must be loaded before all others. Leaks are not looked for: Python keeps memory to the end.
# - PYTHONMALLOC: Python's own allocator would hide the ends of small arrays.
# - A report goes to a file: pytest keeps what a dying process prints.
test-debug: CC := gcc
test-debug:
	rm -rf $(DEBUG) && mkdir -p $(DEBUG)/reports
	cp -R .ci setup.py pyproject.toml README.md README.zh.md CONTRIBUTING.md CHANGELOG.md LICENSE tinygpt tests examples benchmarks docs $(DEBUG)
	rm -f $(DEBUG)/tinygpt/_ext/*.so
	cd $(DEBUG) && CC=$(CC) TINYGPT_EXT=require TINYGPT_SANITIZE=1 TINYGPT_MARCH=native $(PYTHON) setup.py build_ext --inplace
	cd $(DEBUG) && \
	export LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" && \
	export ASAN_OPTIONS=detect_leaks=0:log_path=$$PWD/reports/asan PYTHONMALLOC=malloc && \
	export UBSAN_OPTIONS=print_stacktrace=1:log_path=$$PWD/reports/ubsan && \
	if TINYGPT_EXT=require PYTHONPATH=$$PWD $(PYTHON) -m pytest $(TESTS) && test -z "$$(ls reports)"; then :; \
	else unset LD_PRELOAD; cat reports/* 2>/dev/null; exit 1; fi

# Wrong results and wrong code, everywhere in turn instead of in a sample: each must fail the tests.
mutants: build
	TINYGPT_EXT=require $(PYTHON) -m pytest tests/ops/test_planted_faults.py tests/ops/test_checker.py \
		tests/cuda/test_mutants.py --exhaustive

bench: build
	$(PYTHON) benchmarks/all.py $(BENCH)

lint:
	ruff check .
	ruff format --check .
	mypy

# The notebooks, from their text beside them. Needs the extra notebooks.
notebooks:
	jupytext --to ipynb --update examples/quickstart.py examples/backward_by_hand.py

# The documentation site, into build/site, with the Chinese one in build/site/zh: no warning is let through, and nothing is
# fetched. Needs the extra docs.
SITE := $(PYTHON) -m sphinx -q -W --keep-going -b html
docs:
	$(SITE) -A both=1 docs build/site
	$(SITE) -A both=1 -D language=zh_CN docs build/site/zh
	@echo "see build/site/index.html, and build/site/zh/index.html"

docs-english:
	$(SITE) docs build/site

# The messages that a translator finds in docs/locale/zh_CN; `python docs/untranslated.py` counts those that are missing.
docs-messages:
	rm -rf build/messages
	$(PYTHON) -m sphinx -q -b gettext docs build/messages
	rm -rf build/messages/reference build/messages/changelog.pot
	sphinx-intl update -p build/messages -l zh_CN -d docs/locale --no-obsolete -w 100

annotate:
	TINYGPT_EXT=require TINYGPT_ANNOTATE=1 $(PYTHON) setup.py build_ext --inplace
	@echo "see build/c/build/kernels.html"

clean:
	rm -rf build dist *.egg-info tinygpt/_ext/*.so
