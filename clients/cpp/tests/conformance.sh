#!/bin/sh
# What the conformance program answers without any server: conformance.sh PROGRAM
set -eu
answers=$("$1" <<'EOF'
{"id": "1", "connect": {"target": "127.0.0.1:1", "tls": false, "retry": false}, "call": {"method": "ListModels", "request": ""}}
{"id": "2", "connect": {"target": "127.0.0.1:1"}, "call": {"method": "Nothing", "request": ""}}
{"id": "3", "connect": {"target": "127.0.0.1:1"}, "call": {"method": "GetModel", "request": "/w=="}}
{"id": "4", "connect": []}
nothing
EOF
)
# The order of the fields is protobuf's affair.
expect() { # ID PATTERN...
    line=$(printf '%s\n' "$answers" | grep "\"id\":$1") || line=none
    shift
    for pattern; do
        case $line in *"$pattern"*) ;; *) printf 'expected %s in: %s\n' "$pattern" "$line" >&2; exit 1 ;; esac
    done
}
expect '"1"' '"messages":[]' '"code":"UNAVAILABLE"' '"retry_delay_ms":null' '"left_early":false'
expect '"2"' '"fault":"no method Nothing"'
expect '"3"' '"fault":"the request is no inferwire.v1.GetModelRequest"'
expect '"4"' '"fault":'
expect null '"fault":'
[ "$(printf '%s\n' "$answers" | wc -l)" = 5 ]
