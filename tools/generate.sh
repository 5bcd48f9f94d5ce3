#!/usr/bin/env bash
# Generates the Python code of the contract and of the engine protocol.
#
#   tools/generate.sh PYTHON           writes it into the tree
#   tools/generate.sh PYTHON --check   fails when the tree differs from what would be written
#
# PYTHON is the interpreter of the generator's own environment (requirements/generate.txt): the published code is made
# with the oldest generator whose runtime floor the client promises, which cannot live beside the server's libraries.
set -euo pipefail
python=$1
cd "$(dirname "$0")/.."
bin=$(cd "$(dirname "$python")" && pwd)
out=.
if [ "${2:-}" = --check ]; then
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
    mkdir -p "$out/clients/python" "$out/service"
fi

protoc() { PATH="$bin:$PATH" "$python" -m grpc_tools.protoc -I proto "$@"; }
protoc --python_out="$out/clients/python" --pyi_out="$out/clients/python" proto/inferwire/v1/*.proto
protoc --grpc_python_out="$out/clients/python" --mypy_grpc_out="$out/clients/python" \
    proto/inferwire/v1/inference.proto proto/inferwire/v1/models.proto
protoc --python_out="$out/service" --pyi_out="$out/service" proto/inferwire_server/engine/v1/engine.proto

if [ "$out" != . ]; then
    stale=0
    while read -r file; do
        cmp -s "$out/$file" "$file" || { echo "stale: $file" >&2; stale=1; }
    done < <(cd "$out" && find . -type f | sed 's#^\./##' | sort)
    while read -r file; do
        [ -e "$out/$file" ] || { echo "no longer generated: $file" >&2; stale=1; }
    done < <(find clients/python service -name '*_pb2*.py*' -not -path '*/__pycache__/*' | sort)
    [ "$stale" = 0 ] || { echo "Run 'make generate' and commit the result." >&2; exit 1; }
    echo "Generated code is fresh."
fi
