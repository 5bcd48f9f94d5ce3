#!/usr/bin/env bash
# Generates src/gen from the contract. Needs buf and cargo, and no network once cargo has the crates.
#
#   generate.sh           writes it into the tree
#   generate.sh --check   fails when the tree differs from what would be written
#
# BUF is the buf program; without it the one of .venv in the repository's root.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
buf=${BUF:-$root/.venv/bin/buf}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/gen"
(cd "$root" && "$buf" build --path proto/inferwire/v1 -o "$work/descriptors.binpb")
cargo run --quiet --locked --package inferwire-generate -- "$work/descriptors.binpb" "$work/gen"

if [ "${1:-}" = --check ]; then
    diff -r "$work/gen" src/gen >&2 || { echo "Run clients/rust/generate.sh and commit the result." >&2; exit 1; }
    echo "Generated code is fresh."
else
    rm -rf src/gen
    cp -r "$work/gen" src/gen
fi
