#!/bin/sh
# Let in the node with this public key: ./register.sh client-0.pub
set -eu
key=$(realpath "$1")
cd "$(dirname "$0")"
. ./environment.sh
exec flwr supernode register "$key" fedsb
