#!/bin/sh
# Let in the node with this public key as client K: ./register.sh client-K.pub, or ./register.sh FILE K
set -eu
key=$(realpath "$1")
cd "$(dirname "$0")"
. ./environment.sh
shift
exec fedsb deploy register --port @PORT@ "$key" "$@"
