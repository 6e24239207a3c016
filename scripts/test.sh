#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test. Arguments go to ctest: scripts/test.sh -R golden
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh --tests
scripts/build.sh -DTURBOESM_TESTS=ON
exec ctest --test-dir build/release --output-on-failure "$@"
