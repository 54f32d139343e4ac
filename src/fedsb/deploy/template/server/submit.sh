#!/bin/sh
# Do the run, or resume it if it was stopped; shows its log until it ends. Stop it with Ctrl-C.
#   ./submit.sh --config OTHER.yaml --out OTHER    another run
set -eu
cd "$(dirname "$0")"
. ./environment.sh
exec fedsb deploy submit --port @PORT@ --config ../run.yaml --out ../run "$@"
