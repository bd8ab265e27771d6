#!/usr/bin/env bash
# Installs PostgreSQL for the tests, without a server that runs by itself, and libfaketime, which moves
# wall clocks. Where that is not possible, the tests that need them are left out, and say so.
set -euo pipefail

missing=()
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)
compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || missing+=(faketime)
[ ${#missing[@]} -eq 0 ] && exit 0
leave_out() {
  echo "left out: tests that need ${missing[*]}, because $1" >&2
  exit 0
}
command -v apt-get >/dev/null || leave_out "it is not installed"
sudo=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || leave_out "installing it needs root or sudo"
  sudo=(sudo)
fi
echo "installing ${missing[*]}: the tests start servers of their own"
if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
  # Debian would start a server as soon as the package is there.
  "${sudo[@]}" mkdir -p /etc/postgresql-common
  echo "create_main_cluster = false" |
    "${sudo[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
fi
"${sudo[@]}" apt-get update -qq &&
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 \
    apt-get install -y -qq "${missing[@]}" ||
  leave_out "the packages cannot be installed"
