#!/bin/sh
# Makes a CA, a server's certificate for inferwire.test and a client's, valid for ten years: certificates.sh DIRECTORY
set -eu
mkdir -p "$1"
cd "$1"
new() { # NAME SUBJECT [OPTION...]
    name=$1
    subject=$2
    shift 2
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
        -subj "$subject" -keyout "$name.key" -out "$name.pem" "$@" 2>/dev/null
}
new ca /CN=inferwire-test-ca
new server /CN=inferwire.test -CA ca.pem -CAkey ca.key -addext subjectAltName=DNS:inferwire.test \
    -addext basicConstraints=critical,CA:FALSE
new client /CN=client -CA ca.pem -CAkey ca.key -addext basicConstraints=critical,CA:FALSE
