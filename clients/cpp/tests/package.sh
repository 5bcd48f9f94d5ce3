#!/bin/sh
# Installs the library and builds the examples against it, as a user would:
# package.sh CMAKE GENERATOR BUILD EXAMPLES DIRECTORY
set -eu
rm -rf "$5"
"$1" --install "$3" --prefix "$5/prefix" >/dev/null
"$1" -S "$4" -B "$5/examples" -G "$2" -DCMAKE_PREFIX_PATH="$5/prefix" >/dev/null
"$1" --build "$5/examples"
