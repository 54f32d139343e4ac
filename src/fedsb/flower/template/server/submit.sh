#!/bin/sh
# Start the run, or go on with it if it was stopped; shows its log until it ends.
set -eu
cd "$(dirname "$0")"
. ./environment.sh
exec flwr run ../app fedsb --stream "$@"
