#!/usr/bin/env bash
# bench-peers.sh [--python PROGRAM] [OPTION...]: PyTorch and turboesm side by side on this machine, in one run.
# Writes peers.md (tables) and peers.json (all reports) to build/bench-peers. Takes the first GPU of each back end and
# the CPU. The options are those of tests/peers/compare.py: --devices, --proteins FILE.fasta, --out DIR, --modes sdpa
# (torch.compile takes most of the time), --patience SECONDS ...
set -euo pipefail
cd "$(dirname "$0")/.."

python=python3
if [[ ${1:-} == --python ]]; then
  python=${2:?--python needs the name of a program}
  shift 2
fi
missing=()
for package in torch transformers; do
  "$python" -c "import $package" 2>/dev/null || missing+=("$package")
done
if [[ ${#missing[@]} -gt 0 ]]; then
  echo "bench-peers.sh: $python lacks the package(s) ${missing[*]}: install them, or name a Python that has them by --python" >&2
  exit 2
fi
exec "$python" tests/peers/compare.py --proteins tests/fixtures/proteins/eval.fasta --out build/bench-peers "$@"
