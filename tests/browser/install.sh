#!/bin/sh
# Chromium from Debian's package; nothing where it is there.
set -eu
if command -v chromium; then exit 0; fi
as_root=
[ "$(id -u)" = 0 ] || as_root='sudo -n'
if ! command -v apt-get >/dev/null || ! $as_root true; then
    echo 'check-browser: chromium is missing, so NO page was checked.' >&2
    echo "As root: apt-get install chromium; elsewhere from your system's packages." >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update --quiet
$as_root apt-get install --yes --quiet --no-install-recommends chromium
