#!/bin/sh
# Build stage: what only builds need goes, and of each library one copy stays. The bytecode is made last: nobody can
# write it later, and it must not depend on when a file was copied.
set -eu
requirements=$1
prefix=${2:-/opt/inferwire}
site=$(echo "$prefix"/lib/python3.*/site-packages)
pip="$prefix/bin/python -m pip --disable-pip-version-check"

names() {
    sed -n 's/^\([a-z0-9-]*\)==.*/\1/p' "$requirements/$1.txt" | sort -u
}
names run >/tmp/run.names
# shellcheck disable=SC2046 # a list of words
$pip uninstall --quiet --yes $(names build | grep -vxFf /tmp/run.names | grep -vx pip)
rm /tmp/run.names
$pip check
$pip uninstall --quiet --yes pip

# llama-cpp-python installs what it loads into llama_cpp/lib, and all of it once more here.
rm -rf "${site:?}/lib" "$site/include" "${site:?}/bin" "$prefix/include" "$prefix"/bin/[Aa]ctivate*
# Tests of others.
rm -rf "$site"/numpy/tests "$site"/numpy/*/tests
find "$prefix" -name __pycache__ -type d -prune -exec rm -rf {} +

# A wheel knows no links, so a library lies there three times: under its name, its interface's and its version's. The
# longest name keeps the content; the others become links to it.
find "$site" -type f -name '*.so*' -exec sha256sum {} + | awk '{print $1, length($2), $2}' | sort -k1,1 -k2,2nr \
    | while read -r hash _ file; do
        if [ "$hash" = "${kept_hash:-}" ] && [ "${file%/*}" = "${kept%/*}" ]; then
            ln -sf "${kept##*/}" "$file"
        else
            kept_hash=$hash kept=$file
        fi
    done

"$prefix/bin/python" -m compileall -q -j 0 --invalidation-mode unchecked-hash "$site"
