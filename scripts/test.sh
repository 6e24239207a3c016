#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test. Arguments go to ctest: scripts/test.sh -R golden
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh --tests
# All architectures of the CUDA module take long to compile, and one that no GPU here runs is as good as another.
options=(-DTURBOESM_TESTS=ON)
[[ -e /dev/nvidiactl ]] || options+=(-DTURBOESM_CUDA_ARCHITECTURES=90a-real)
scripts/build.sh "${options[@]}"
exec ctest --test-dir build/release --output-on-failure "$@"
