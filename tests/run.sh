#!/bin/sh
# Runs the tests that cargo-nextest is told to, and says at the end what was flaky. They write into the directory SCRATCH.
#
# usage: SCRATCH=DIR tests/run.sh ARGUMENT...
set -eu
results=build/nextest/default/junit.xml

if ! tests/as-root.sh tests/takes-overlay.sh "$SCRATCH"; then
    echo "run.sh: no overlay can lie on the file system of $SCRATCH; each test gets another one" >&2
    export OWN_SCRATCH=1
fi
# One machine more than there are cores, for each rests now and then. Nextest cannot reckon.
mkdir -p build
sed "s/^machines = .*/machines = { max-threads = $(($(nproc) + 1)) }/" .config/nextest.toml > build/nextest.toml
rm -f "$results"
status=0
cargo nextest run --config-file build/nextest.toml "$@" || status=$?
[ ! -e "$results" ] || python3 tests/report.py "$results" build/stories.txt
exit "$status"
