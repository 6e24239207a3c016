#!/usr/bin/env bash
# build.sh [CMAKE OPTION...]: configures and builds the release preset into build/release. Prints little unless
# something goes wrong; on a terminal it shows the progress.
set -euo pipefail
cd "$(dirname "$0")/.."

mkdir -p build
log=build/configure.log
cmake --preset release "$@" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
quiet=(-- --quiet)
[[ ! -t 1 ]] || quiet=()
echo "building in build/release"
cmake --build build/release --parallel "$(nproc)" "${quiet[@]}"
