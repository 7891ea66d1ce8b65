# `make` lists what there is to type.

HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
BINARY := build/nixos-install-via
# 9.5 MiB.
SIZE_LIMIT := 9961472
FIXTURES := build/fixture/uefi/toplevel build/fixture/bios/toplevel build/fixture/gpt-auto/toplevel \
	build/fixture/luks/toplevel build/fixture/deploy/toplevel
ANSIBLE := build/ansible/installed
DEBIAN := build/debian/uefi.img build/debian/bios.img

# Neither has a PATH room for a colon, nor ssh for the other.
ifneq ($(findstring :,$(CURDIR))$(findstring %,$(CURDIR)),)
$(error The path of this checkout holds a colon or a percent sign, which Cargo and ssh take for more than that: $(CURDIR))
endif

# Where Cargo builds, by its configuration and the environment; for recipes, inside of double quotes.
TARGET = $$(cargo metadata --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')

# Of the test runner, where there is none: the last one that is content with this project's oldest Rust.
NEXTEST := 0.9.128
# All but the examples, which have none.
TESTS = --workspace --lib --bins --tests
# So many tests a core, for many mostly wait; machines do less so.
PER_CORE = 2
check: PER_CORE = 3
RUN_TESTS = SCRATCH="$(TARGET)/tmp" tests/run.sh $(TESTS) --test-threads $$(($$(nproc) * $(PER_CORE)))

# The tests attach loop devices and own store paths as root does; Debian keeps their tools in sbin.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# The runner goes by its name, for words of a command are what blanks separate, and the path may have some.
export PATH := $(PATH):/usr/sbin:/sbin:$(CURDIR)/build/tools/bin:$(CURDIR)/tests
export CARGO_TARGET_$(shell echo $(HOST) | tr a-z- A-Z_)_RUNNER := as-root.sh
# These would have something else built, or elsewhere.
unexport CDPATH CARGO_BUILD_TARGET CARGO_ENCODED_RUSTFLAGS

.PHONY: help build demo test check tests-built nextest test-module bench lint clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

build: $(BINARY) ## Build the static, stripped binary: build/nixos-install-via

demo: build build/fixture/uefi/toplevel ## Clone a running system in a virtual machine and boot the clone (KEEP=1 keeps its disk)
	tests/needs.sh tests/packages/test
	cargo build --quiet --example demo
	$(SUDO) env KEEP=$(KEEP) "$(TARGET)"/debug/examples/demo

# Debian first: it needs nothing of what is built here, and the network is slower than any core.
test: $(DEBIAN) build tests-built $(FIXTURES) $(ANSIBLE) nextest ## Run every test, virtual machines included (ONLY=PATTERN: those whose names contain it)
	tests/needs.sh tests/packages/test
	$(RUN_TESTS) $(ONLY)
	$(if $(ONLY),,$(SUDO) env BINARY=$(BINARY) tests/module/run.sh)

check: build tests-built $(FIXTURES) $(ANSIBLE) nextest ## Run the tests that take no virtual machine
	tests/needs.sh tests/packages/test
	$(RUN_TESTS) --filterset 'not test(/^qemu::/)'

# While the release binary is linked, the other cores have something to do.
tests-built: nextest
	tests/needs.sh tests/packages/build tests/packages/test
	cargo nextest run $(TESTS) --no-run

nextest:
	@tests/needs.sh tests/packages/build
	@cargo nextest --version >/dev/null 2>&1 || { \
		echo 'nextest: building cargo-nextest $(NEXTEST) from crates.io, once' >&2; \
		cargo install --quiet --locked --root build/tools cargo-nextest@$(NEXTEST) --no-default-features --features default-no-update; }

test-module: build ## Evaluate the NixOS module in every case (NIXPKGS=DIR: with that nixpkgs' lib)
	tests/needs.sh tests/packages/test
	$(SUDO) env BINARY=$(BINARY) $(if $(NIXPKGS),NIXPKGS=$(NIXPKGS)) tests/module/run.sh

bench: build build/fixture/uefi/toplevel build/fixture/bios/toplevel $(DEBIAN) ## Measure against cp, rsync, tar and nix copy (BENCH_DIR=DIR elsewhere, ONLY=local, ssh, scale or install, ROUNDS=1 is quick)
	tests/needs.sh tests/packages/bench tests/packages/test
	cargo build --quiet --example bench
	$(SUDO) env $(if $(BENCH_DIR),BENCH_DIR=$(BENCH_DIR)) ONLY=$(ONLY) ROUNDS=$(ROUNDS) SLOW=$(SLOW) "$(TARGET)"/debug/examples/bench

lint: ## Check format, clippy (of the fuzzers too) and the shell scripts
	tests/needs.sh tests/packages/build tests/packages/lint
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	CUSTOM_LIBFUZZER_PATH=/nothing/is/linked/libfuzzer.a cargo clippy --manifest-path fuzz/Cargo.toml --target-dir "$(TARGET)" -- -D warnings
	shellcheck $$(grep -rlE '^#! ?/bin/(ba)?sh' .ci tests templates --include=run --include='*.sh')

# Of tests that were killed there may be files of root.
clean: ## Remove what was built
	target="$(TARGET)"; $(SUDO) rm -rf build "$${target:?}/tmp"
	cargo clean

# Cargo knows what changed; the copy keeps its time when nothing did. What a release is built with is said in
# .cargo/config.toml and build.rs.
$(BINARY): FORCE
	@command -v cargo >/dev/null || { echo 'cargo is missing: see https://rustup.rs' >&2; exit 1; }
	@tests/needs.sh tests/packages/build
	cargo static --target $(HOST)
	@mkdir -p build
	@built="$(TARGET)/$(HOST)/release/nixos-install-via"; cmp --quiet "$$built" $@ || install "$$built" $@
	@tests/static.sh $@ $(SIZE_LIMIT)

# One after the other: they share what was fetched.
build/fixture/%/toplevel: $(BINARY) $(wildcard tests/fixture/* tests/fixture/*/*)
	tests/needs.sh tests/packages/test tests/fixture/packages
	$(SUDO) flock build tests/fixture/build.sh $* $(BINARY)

# A real Debian, of packages that are kept beside the images.
$(DEBIAN) &: $(shell find tests/debian -type f) tests/fixture/guest/agent.sh tests/fixture/guest/units/tests-agent.service
	tests/needs.sh tests/debian/packages
	@mkdir -p build
	$(SUDO) tests/debian/build.sh

# From PyPI, each file with the hash that is pinned; nothing of it leaves this directory.
$(ANSIBLE): tests/ansible/requirements.txt
	tests/needs.sh tests/packages/test
	@echo 'ansible: installing from PyPI into build/ansible:' $$(sed -n 's/^\([^ #]*==[^ ]*\).*/\1/p' $<) >&2
	rm -rf build/ansible
	python3 -m venv build/ansible
	build/ansible/bin/pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r $<
	@pwd -P >$@

# It knows the path it was made at.
ifneq ($(shell cat $(ANSIBLE) 2>/dev/null),$(CURDIR))
$(ANSIBLE): FORCE
endif

FORCE:
