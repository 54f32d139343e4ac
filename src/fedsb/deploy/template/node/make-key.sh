#!/bin/sh
# Once, at the node: its key. The file ending in .pub goes to the server's ./register.sh; the other stays here.
set -eu
cd "$(dirname "$0")"
umask 077
[ ! -e client-@CLIENT@ ] || { echo "client-@CLIENT@ exists: remove it first if the server is to know another key" >&2; exit 1; }
ssh-keygen -q -t ecdsa -b 384 -N "" -C "client-@CLIENT@" -f client-@CLIENT@
echo "made client-@CLIENT@.pub: send it to whoever runs the server"
