#!/usr/bin/env bash
# Fails when the contract in the working tree would break a client of the contract on main. Without network.
#
#   tools/check_breaking.sh BUF        BUF is the buf program
set -euo pipefail
buf=$1
cd "$(dirname "$0")/.."

for ref in origin/main main; do
    git cat-file -e "$ref:proto" 2>/dev/null && break
    ref=
done
if [ -z "$ref" ]; then
    echo "There is no main branch with a contract here: nothing to compare with."
    exit 0
fi

# buf can read Git's own folder, but not that of a shallow clone or a linked working tree.
against=$(mktemp -d)
trap 'rm -rf "$against"' EXIT
git archive "$ref" proto buf.yaml | tar -x -C "$against"
"$buf" breaking --against "$against"
echo "The contract breaks no client of the one on $ref."
