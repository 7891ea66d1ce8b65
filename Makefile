# `make` lists what there is to type.

HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
BINARY := build/nixos-install-via
SIZE_LIMIT := 8388608
# Static, and small: nothing unwinds, and what is to be relocated is written down in a short form.
RELEASE_FLAGS := -C target-feature=+crt-static -C force-unwind-tables=no -C link-arg=-Wl,-z,pack-relative-relocs
FIXTURES := build/fixture/uefi/toplevel build/fixture/bios/toplevel build/fixture/gpt-auto/toplevel \
	build/fixture/luks/toplevel build/fixture/deploy/toplevel
ANSIBLE := build/ansible/installed
DEBIAN := build/debian/uefi.img build/debian/bios.img

# One more than there are cores, for many tests mostly wait. No more stories have machines than there are cores.
TEST_THREADS := $(shell echo $$(($$(nproc) + 1)))

# The tests attach loop devices and own store paths as root does; Debian keeps their tools in sbin.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
export PATH := $(PATH):/usr/sbin:/sbin
ifneq ($(SUDO),)
export CARGO_TARGET_$(shell echo $(HOST) | tr a-z- A-Z_)_RUNNER := sudo -E
endif

.PHONY: help build demo test tests-built test-module bench lint clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

build: $(BINARY) ## Build the static, stripped binary: build/nixos-install-via

demo: build build/fixture/uefi/toplevel ## Clone a running system in a virtual machine and boot the clone (KEEP=1 keeps its disk)
	tests/needs.sh tests/packages/test
	cargo build --quiet --example demo
	$(SUDO) env KEEP=$(KEEP) target/debug/examples/demo

# Debian first: it needs nothing of what is built here, and the network is slower than any core.
test: $(DEBIAN) build tests-built $(FIXTURES) $(ANSIBLE) ## Run every test, virtual machines included
	tests/needs.sh tests/packages/test
	RUST_TEST_THREADS=$(TEST_THREADS) cargo test --workspace
	BINARY=$(BINARY) tests/module/run.sh

# While the release binary is linked, the other cores have something to do.
tests-built:
	tests/needs.sh tests/packages/build tests/packages/test
	cargo test --workspace --no-run

test-module: build ## Evaluate the NixOS module in every case (NIXPKGS=DIR: with that nixpkgs' lib)
	tests/needs.sh tests/packages/test
	BINARY=$(BINARY) $(if $(NIXPKGS),NIXPKGS=$(NIXPKGS)) tests/module/run.sh

bench: build build/fixture/uefi/toplevel build/fixture/bios/toplevel $(DEBIAN) ## Measure against cp, rsync, tar and nix copy (BENCH_DIR=DIR elsewhere, ONLY=local, ssh, scale or install, ROUNDS=1 is quick)
	tests/needs.sh tests/packages/bench tests/packages/test
	cargo build --quiet --example bench
	$(SUDO) env $(if $(BENCH_DIR),BENCH_DIR=$(BENCH_DIR)) ONLY=$(ONLY) ROUNDS=$(ROUNDS) SLOW=$(SLOW) target/debug/examples/bench

lint: ## Check format, clippy (of the fuzzers too) and the shell scripts
	tests/needs.sh tests/packages/build tests/packages/lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --manifest-path fuzz/Cargo.toml --target-dir target -- -D warnings
	shellcheck $$(grep -rlE '^#! ?/bin/(ba)?sh' .ci tests templates --include=run --include='*.sh')

clean: ## Remove what was built
	cargo clean
	$(SUDO) rm -rf build

# Cargo knows what changed; the copy keeps its time when nothing did. An explicit target keeps
# the static flag away from proc macros.
$(BINARY): FORCE
	@command -v cargo >/dev/null || { echo 'cargo is missing: see https://rustup.rs' >&2; exit 1; }
	@tests/needs.sh tests/packages/build
	RUSTFLAGS='$(RELEASE_FLAGS)' cargo build --release --target $(HOST)
	@mkdir -p build
	@cmp --quiet target/$(HOST)/release/nixos-install-via $@ || install target/$(HOST)/release/nixos-install-via $@
	@tests/static.sh $@ $(SIZE_LIMIT)

# One after the other: they share what was fetched.
build/fixture/%/toplevel: $(BINARY) $(wildcard tests/fixture/* tests/fixture/*/*)
	tests/needs.sh tests/packages/test tests/fixture/packages
	$(SUDO) flock build tests/fixture/build.sh $* $(BINARY)

# A real Debian, of packages that are kept beside the images.
$(DEBIAN) &: $(shell find tests/debian -type f)
	tests/needs.sh tests/debian/packages
	$(SUDO) tests/debian/build.sh

# From PyPI, each file with the hash that is pinned; nothing of it leaves this directory.
$(ANSIBLE): tests/ansible/requirements.txt
	tests/needs.sh tests/packages/test
	@echo 'ansible: installing from PyPI into build/ansible:' $$(sed -n 's/^\([^ #]*==[^ ]*\).*/\1/p' $<) >&2
	rm -rf build/ansible
	python3 -m venv build/ansible
	build/ansible/bin/pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r $<
	@touch $@

FORCE:
