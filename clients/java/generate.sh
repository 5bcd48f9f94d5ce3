#!/usr/bin/env bash
# Generates the Java code of the contract.
#
#   ./generate.sh           writes it into src/main/generated
#   ./generate.sh --check   fails when the tree differs from what would be written
#
# Maven fetches the generators once, in the versions that pom.xml names; after that no network is needed.
set -euo pipefail
cd "$(dirname "$0")"
tree=src/main/generated

case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) platform=linux-x86_64 ;;
    Linux-aarch64) platform=linux-aarch_64 ;;
    Darwin-x86_64) platform=osx-x86_64 ;;
    Darwin-arm64) platform=osx-aarch_64 ;;
    *) echo "The generators do not run on $(uname -s) $(uname -m)." >&2; exit 1 ;;
esac

# tool GROUP ARTIFACT PROPERTY: puts the program into target/tools under its own name.
tool() {
    local version binary
    version=$(sed -n "s|.*<$3>\(.*\)</$3>.*|\1|p" pom.xml)
    binary=target/tools/$2-$version-$platform.exe
    if [ ! -x "$binary" ]; then
        mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.11.0:copy \
            -Dartifact="$1:$2:$version:exe:$platform" -DoutputDirectory=target/tools
        chmod +x "$binary"
    fi
    ln -sf "${binary##*/}" "target/tools/$2"
}
tool com.google.protobuf protoc protobuf.version
tool io.grpc protoc-gen-grpc-java protoc-gen-grpc-java.version
tool build.buf buf buf.version

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
target/tools/buf generate ../.. --path ../../proto/inferwire/v1 --template buf.gen.yaml --output "$out"

if [ "${1:-}" = --check ]; then
    diff -rq "$tree" "$out" >&2 || { echo "Run clients/java/generate.sh and commit the result." >&2; exit 1; }
    echo "Generated code is fresh."
else
    rm -rf "$tree"
    mkdir -p "$tree"
    cp -r "$out/." "$tree"
fi
