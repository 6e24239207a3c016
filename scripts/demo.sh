#!/usr/bin/env bash
# Installs what is missing, builds, and embeds the example proteins with the model that ships.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
without_tests=(-DTURBOESM_TESTS=OFF)
[[ ! -e build/release/CMakeCache.txt ]] || without_tests=()  # leave a build that has them as it is
scripts/build.sh "${without_tests[@]}"

run() { echo "\$ $*"; "$@"; }
run build/release/bin/turboesm devices
run build/release/bin/turboesm embed apps/example.fasta -o build/example.safetensors --device auto
echo "The embeddings are in build/example.safetensors."
