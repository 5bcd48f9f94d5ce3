#!/bin/sh
# Final stage: what the server needs of the system, and a user who owns nothing.
set -eu
# The engine was compiled against OpenMP and the C++ library.
packages="libgomp1 libstdc++6"
command -v python3 >/dev/null || packages="$packages python3"
apt-get update
# shellcheck disable=SC2086 # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $packages
# Security fixes that are newer than the base image.
DEBIAN_FRONTEND=noninteractive apt-get upgrade --yes
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log /var/cache/debconf/*-old
useradd --system --no-log-init --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin inferwire
