#!/bin/sh
# Build stage: the bill of materials, by tools that are not part of it.
set -eu
requirements=$1 system=$2 output=$3
python3 -m venv /tmp/sbom
/tmp/sbom/bin/python -m pip --disable-pip-version-check --no-input install --quiet --require-hashes --no-deps \
    -r "$requirements/sbom.txt"
/tmp/sbom/bin/python "$(dirname "$0")/sbom.py" --environment /opt/inferwire --system "$system" --output "$output"
rm -rf /tmp/sbom
