#!/bin/sh
# The SuperNode: connects to the server (from here to there alone: no port need be open here) and trains when
# asked. ca.crt from the server must lie beside it. Stop it with Ctrl-C; started again it goes on.
set -eu
cd "$(dirname "$0")"
export FLWR_HOME="$PWD/flower" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
exec flower-supernode --superlink "${SUPERLINK:-@HOST@:@PORT@}" --root-certificates ca.crt \
  --auth-supernode-private-key client-@CLIENT@ --host 127.0.0.1 --port @NODE_PORT@ \
  --node-config "fedsb=\"$PWD/node.yaml\""
