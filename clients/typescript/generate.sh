#!/usr/bin/env bash
# Generates the TypeScript of the contract (src/v1), of the error details (src/google) and, for the conformance program,
# of gRPC's health service (conformance/grpc).
#
#   ./generate.sh           writes it into the tree
#   ./generate.sh --check   fails when the tree differs from what would be written
#
# buf and protoc-gen-es are pinned in package.json; after `npm ci` nothing here needs a network.
set -euo pipefail
cd "$(dirname "$0")"
[ -x node_modules/.bin/buf ] || npm ci
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# generate FOLDER INPUT PATH: the files beneath PATH of the module INPUT, into FOLDER.
generate() {
    node_modules/.bin/buf generate "$2" --path "$2/$3" --output "$out/$1" --template '{
        "version": "v2",
        "plugins": [{
            "local": "node_modules/.bin/protoc-gen-es",
            "out": ".",
            "opt": ["target=ts", "import_extension=js"]
        }]
    }'
}
generate contract ../../proto inferwire/v1
generate details proto google/rpc
generate health proto grpc/health/v1
mkdir -p "$out/src" "$out/conformance"
mv "$out/contract/inferwire/v1" "$out/src/v1"
mv "$out/details/google" "$out/src/google"
mv "$out/health/grpc" "$out/conformance/grpc"

for folder in src/v1 src/google conformance/grpc; do
    if [ "${1:-}" = --check ]; then
        diff -r "$out/$folder" "$folder" >&2 || { echo "$folder is stale: run generate.sh and commit the result." >&2; exit 1; }
    else
        rm -rf "$folder"
        cp -r "$out/$folder" "$folder"
    fi
done
[ "${1:-}" != --check ] || echo "Generated code is fresh."
