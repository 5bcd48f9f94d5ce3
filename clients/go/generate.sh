#!/usr/bin/env bash
# Generates the Go code of the contract into inferwire/v1.
#
#   ./generate.sh           writes it into the tree
#   ./generate.sh --check   fails when the tree differs from what would be written
#
# go.mod pins both plugins. BUF names the buf binary; without it, that of the repository's .venv or of the PATH.
set -euo pipefail
cd "$(dirname "$0")"
buf=${BUF:-../../.venv/bin/buf}
command -v "$buf" >/dev/null || buf=buf

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
"$buf" generate ../.. --path ../../proto/inferwire --template buf.gen.yaml --output "$out"

if [ "${1:-}" = --check ]; then
    diff -rq "$out/inferwire/v1" inferwire/v1 >&2 || { echo "Run clients/go/generate.sh and commit the result." >&2; exit 1; }
    echo "Generated code is fresh."
else
    mkdir -p inferwire/v1
    rm -f inferwire/v1/*.pb.go
    cp "$out"/inferwire/v1/*.pb.go inferwire/v1/
fi
