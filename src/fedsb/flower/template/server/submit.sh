#!/bin/sh
# Start the run, or go on with it if it was stopped; shows its log until it ends.
set -eu
cd "$(dirname "$0")"
. ./environment.sh
flwr run ../app fedsb --stream "$@"
out=../run settings="$*"
case "$settings" in *out=\"*) out=${settings#*out=\"} out=${out%%\"*} ;; esac   # named by --run-config
[ -e "$out/summary.json" ] || {   # flwr exits with 0 whatever became of the run
  echo "the run is not finished: see above; ./submit.sh goes on after its last finished round" >&2
  exit 1
}
