#!/bin/sh
# The SuperLink: what nodes connect to. Stop it with Ctrl-C; started again it resumes.
#   HOST=0.0.0.0 ./start.sh    listen to other machines too. Without it this machine alone can connect.
set -eu
cd "$(dirname "$0")"
. ./environment.sh
fedsb deploy preflight --host "${HOST:-127.0.0.1}" --port @PORT@ --certificate ca.crt --certificate server.crt
exec fedsb deploy superlink --host "${HOST:-127.0.0.1}" --port @PORT@
