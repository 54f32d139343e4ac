#!/bin/sh
# Let client K's node in no more: ./revoke.sh K. Its number is free for another key then.
set -eu
cd "$(dirname "$0")"
. ./environment.sh
exec fedsb deploy revoke --port @PORT@ "$@"
