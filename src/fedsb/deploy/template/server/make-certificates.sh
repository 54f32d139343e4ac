#!/bin/sh
# Once, at the server: a certificate authority of your own, the server's certificate for the names below, and the
# submit key, without which nobody registers nodes or starts runs. ca.crt goes to every node. The keys stay here.
#   ./make-certificates.sh --renew      a new server.crt by the same authority: nodes need nothing new
set -eu
cd "$(dirname "$0")"
umask 077
if [ "${1:-}" = --renew ]; then
  [ -e ca.key ] || { echo "no ca.key here: run ./make-certificates.sh first" >&2; exit 1; }
elif [ -e ca.key ]; then
  echo "ca.key exists: --renew makes a new server.crt; remove ca.key first if every node is to get a new ca.crt" >&2
  exit 1
else
  openssl ecparam -name prime256v1 -genkey -noout -out ca.key
  openssl req -x509 -new -key ca.key -sha256 -days 3650 -subj "/CN=fedsb @HOST@" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" -out ca.crt
fi
openssl ecparam -name prime256v1 -genkey -noout -out server.key
openssl req -new -key server.key -subj "/CN=@HOST@" -out server.csr
cat > server.ext <<X
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
subjectAltName=@NAMES@
authorityKeyIdentifier=keyid
subjectKeyIdentifier=hash
X
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -sha256 -days "${DAYS:-365}" \
  -extfile server.ext -out server.crt
rm -f server.csr server.ext
[ -e submit.key ] || openssl rand -hex 32 > submit.key
chmod 644 ca.crt server.crt
echo "made server.crt (${DAYS:-365} days); ca.crt goes to every node"
