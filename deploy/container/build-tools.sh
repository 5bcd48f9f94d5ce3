#!/bin/sh
# Build stage: the compilers, and a Python with venv where the base image has none. Needs a base that has apt.
set -eu
packages="build-essential"
if ! command -v python3 >/dev/null; then
    packages="$packages python3 python3-venv"
elif ! python3 -c 'import ensurepip' 2>/dev/null; then
    packages="$packages python3-venv"
fi
apt-get update
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $packages
rm -rf /var/lib/apt/lists/*
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the base image needs Python 3.11 or newer")'
