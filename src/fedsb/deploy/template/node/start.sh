#!/bin/sh
# The SuperNode: connects to the server (from here to there alone: no port need be open here). Beside it runs one
# client process, which trains when asked: it keeps the model loaded and runs the installed fedsb alone, no code
# that a server sends. Stop both with Ctrl-C; started again they go on. ca.crt from the server must lie here.
set -eu
cd "$(dirname "$0")"
umask 077
export FLWR_HOME="$PWD/flower" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
mkdir -p "$FLWR_HOME"
secret="$FLWR_HOME/secret"
fedsb deploy preflight --port @NODE_PORT@ --certificate ca.crt
head -c 32 /dev/urandom > "$secret"
while kill -0 $$ 2> /dev/null; do   # $$ is the SuperNode, as soon as exec has made it that
  fedsb deploy client --port @NODE_PORT@ --secret "$secret" --supernode $$ || {
    [ $? != 2 ] || kill $$   # 2: nothing that a fresh start would fix
    sleep 2
  }
done &
exec flower-supernode --superlink "${SUPERLINK:-@HOST@:@PORT@}" --root-certificates ca.crt \
  --auth-supernode-private-key client-@CLIENT@ --host 127.0.0.1 --port @NODE_PORT@ \
  --isolation process --superexec-auth-secret-file "$secret" --node-config "fedsb=\"$PWD/node.yaml\""
