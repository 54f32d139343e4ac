#!/bin/sh
# The SuperLink: what nodes connect to. Stop it with Ctrl-C; started again it goes on.
set -eu
cd "$(dirname "$0")"
. ./environment.sh
fedsb deploy preflight --host "${HOST:-0.0.0.0}" --port @PORT@ --certificate ca.crt --certificate server.crt
exec flower-superlink --host "${HOST:-0.0.0.0}" --port @PORT@ \
  --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key \
  --enable-supernode-auth --disable-runtime-dependency-installation --database "$PWD/flower/superlink.db"
