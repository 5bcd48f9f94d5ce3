#!/usr/bin/env bash
# Makes requirements/*.txt anew: every package at its newest version that pyproject.toml and requirements/*.in allow,
# with the hashes of all its files, for every platform and every Python from 3.11 on. No registry's address is written.
#
#   tools/lock.sh UV [OPTION...]       UV is the uv program; an option is one of `uv pip compile`'s, such as
#                                      --upgrade-package httpx
#
# Each file is made with the earlier ones as constraints, so all of them can be installed into one environment; only
# generate.txt and litellm.txt stand alone. Without options what is locked stays, and only what has to change does.
set -euo pipefail
uv=$1
shift
cd "$(dirname "$0")/.."

compile() {
    local out=$1
    shift
    echo "$out"
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-package inferwire \
        --custom-compile-command "make lock" --output-file "$out" "$@"
}

compile requirements/run.txt pyproject.toml --extra web --extra otel "$@"
compile requirements/build.txt requirements/build.in -c requirements/run.txt "$@"
compile requirements/dev.txt pyproject.toml --extra web --extra otel --extra dev -c requirements/run.txt -c requirements/build.txt "$@"
compile requirements/oracle.txt requirements/oracle.in --no-deps "$@"
compile requirements/sdks.txt requirements/sdks.in -c requirements/dev.txt "$@"
compile requirements/train.txt pyproject.toml --extra train -c requirements/dev.txt "$@"
compile requirements/bench.txt requirements/bench.in -c requirements/dev.txt "$@"
compile requirements/sbom.txt requirements/sbom.in -c requirements/dev.txt "$@"
compile requirements/litellm.txt requirements/litellm.in "$@"
compile requirements/generate.txt requirements/generate.in "$@"
