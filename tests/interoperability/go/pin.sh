#!/usr/bin/env bash
# Pins a version of Kubernetes in go.mod: ./pin.sh v1.36.3
# k8s.io/kubernetes replaces its staging modules by folders of its own repository. Whoever requires it from outside must
# name their published versions, v0.N.M for v1.N.M; the list is read from its own go.mod.
set -euo pipefail
cd "$(dirname "$0")"
version=$1

mod=$(cd / && go mod download -json "k8s.io/kubernetes@$version" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')
staging=$(sed -n 's/^\t\(k8s\.io\/[a-z-]*\) => .*/\1/p' "$mod")

go mod edit -require="k8s.io/kubernetes@$version" \
    $(for module in $staging; do echo "-replace=$module=$module@v0.${version#v1.}"; done)
go mod tidy
