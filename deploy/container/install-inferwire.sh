#!/bin/sh
# Build stage: the client and the server from the folder given.
set -eu
source=$1
PATH=/opt/inferwire/bin:$PATH
python -m pip --disable-pip-version-check --no-input install --no-compile --no-deps --no-build-isolation \
    "$source/clients/python" "$source"
