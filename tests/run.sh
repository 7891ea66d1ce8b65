#!/bin/sh
# Runs the tests that cargo-nextest is told to, and says at the end what was flaky.
#
# usage: tests/run.sh ARGUMENT...
set -eu
results=build/nextest/default/junit.xml

rm -f "$results"
status=0
cargo nextest run "$@" || status=$?
[ ! -e "$results" ] || python3 tests/report.py "$results" build/stories.txt
exit "$status"
