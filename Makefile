# Two commands do all their own set-up: make quickstart, make test.
#   make quickstart            Fashion-MNIST, a slim net, some minutes on 2 cores
#   make quickstart DATA=DIR   the same on your own image folder; ARGS="KEY=VALUE --stage pretrain"
#   make test                  lint, types, every test, and a sample of the campaign of faults
#   make lint                  ruff and mypy alone
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

.PHONY: quickstart test browser lint bench clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/.run $(if $(DATA),,$(FASHION)/.complete)
	$(BIN)/fastselfie train configs/quickstart.yaml --out "$(OUT)" \
	  $(if $(DATA),data.train="$(DATA)" data.limit=60000 $(COLOURS)) $(ARGS)

# Last a seeded sample of the campaign of faults, some minutes: it ends with status 1 on any loss.
test: lint browser
	$(BIN)/pytest
	$(BIN)/python benchmarks/reliability.py --quick

# Run pages are looked at in one.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && apt-get update -q && \
	  apt-get install -qy --no-install-recommends chromium; } || \
	  { echo "error: the tests look at pages: sudo apt-get install chromium"; exit 2; }

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tests' packages have FFCV and DALI in them; SPDL loads the system's FFmpeg.
bench: $(VENV)/.dev
	@command -v ffmpeg >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -q && \
	  apt-get install -qy --no-install-recommends ffmpeg; } || \
	  { echo "error: SPDL, a peer, needs FFmpeg: sudo apt-get install ffmpeg"; exit 2; }
	$(BIN)/python -m pip install -q -c constraints.txt spdl webdataset
	PYTHON=$(BIN)/python benchmarks/run_all.sh "$(DATA)"

clean:
	rm -rf $(VENV) build *.egg-info

# Debian splits venv's pip from Python: install it where we may, else say how.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is older than 3.10: make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -qy python3-venv; } || \
	  { echo "error: $(PYTHON) has no venv: sudo apt-get install python3-venv"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# The extension needs a C++ compiler and the headers of Python and libjpeg: one line that uses all
# three tells whether they are there.
BUILD_PACKAGES := g++ $(notdir $(PYTHON))-dev libjpeg-dev
BUILD_CHECK = printf '\#include <Python.h>\n\#include <jpeglib.h>\nint main() { jpeg_std_error(0); }' | \
  $(CXX) -x c++ -I "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
  -o /dev/null - -ljpeg
$(VENV)/.build: $(BIN)/python
	@$(BUILD_CHECK) 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -q && \
	  apt-get install -qy --no-install-recommends $(BUILD_PACKAGES) && $(BUILD_CHECK); } || \
	  { echo "error: the C++ extension cannot be built: sudo apt-get install $(BUILD_PACKAGES)"; \
	  exit 2; }
	@touch $@

ENGINE := $(wildcard $(addprefix kernels/*/*.,cpp hpp inl))
$(VENV)/.run: $(VENV)/.build pyproject.toml setup.py constraints.txt $(ENGINE)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[report]'
	@touch $@

# The tests run FFCV and DALI for real. FFCV builds against the system's OpenCV and TurboJPEG, with
# the setuptools that is installed; its own metadata asks for an OpenCV with a window system.
FFCV_PACKAGES := libturbojpeg0-dev libopencv-dev pkg-config
$(VENV)/.dev: $(VENV)/.run
	@pkg-config --exists opencv4 libturbojpeg 2>/dev/null || { [ "$$(id -u)" = 0 ] && \
	  apt-get update -q && apt-get install -qy --no-install-recommends $(FFCV_PACKAGES); } || \
	  { echo "error: the tests need FFCV, which cannot be built:" \
	  "sudo apt-get install $(FFCV_PACKAGES)"; exit 2; }
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[report,export,dev,ffcv,dali]' setuptools wheel
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
