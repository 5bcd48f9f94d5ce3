#!/bin/sh
# Makes what compose.yaml mounts, once: an authority and a certificate of the server, an empty list of keys, Grafana's
# password, a folder for models. Nothing that is there is replaced. NAME is what clients call the server by.
#
#   ./prepare.sh [NAME]
set -eu
cd "$(dirname "$0")"
name=${1:-localhost}
# The server runs as you, to read its files, but never as root.
user=$(id -u) group=$(id -g)
[ "$user" != 0 ] || user=10001 group=10001
umask 077
mkdir -p models secrets/authority secrets/inferwire
chmod 755 models

if [ ! -e secrets/inferwire/server.pem ]; then
    cd secrets/authority
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=inferwire authority" \
        -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca.key -out ca.pem
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$name" -keyout server.key -out server.csr
    printf 'subjectAltName=DNS:%s,DNS:localhost,DNS:inferwire,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n' "$name" \
        >server.extensions
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 825 -extfile server.extensions \
        -out server.pem
    rm server.csr server.extensions
    # The authority's own key stays behind: no container sees it.
    mv server.pem server.key ../inferwire
    cd ../..
fi
[ -e secrets/inferwire/keys.toml ] || : >secrets/inferwire/keys.toml
if [ ! -e secrets/grafana-password ]; then
    openssl rand -hex 16 >secrets/grafana-password
    # Grafana's user reads it through the mount; on this machine the folder is closed to others.
    chmod 644 secrets/grafana-password
fi
[ "$(id -u)" != 0 ] || chown -R "$user:$group" secrets/inferwire
[ -e .env ] || printf 'INFERWIRE_USER=%s\nINFERWIRE_GROUP=%s\n' "$user" "$group" >.env

cat <<TEXT

Done. The server, Prometheus and Grafana:
  docker compose up --build
A key for a caller:
  docker compose run --rm -T --no-deps inferwire key alice >> $PWD/secrets/inferwire/keys.toml
A call from here:
  INFERWIRE_TOKEN=iw_... inferwire chat --address $name:50051 --ca $PWD/secrets/authority/ca.pem
Grafana is at http://localhost:3000; the password of admin is in secrets/grafana-password.
TEXT
