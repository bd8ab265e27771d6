#!/usr/bin/env bash
# Installs PostgreSQL for the tests, without a server that runs by itself. Where that is not
# possible, the tests that need it are left out, and say so.
set -euo pipefail

compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && exit 0
leave_out() {
  echo "left out: tests with PostgreSQL, because $1" >&2
  exit 0
}
command -v apt-get >/dev/null || leave_out "it is not installed (Debian's package: postgresql)"
sudo=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || leave_out "installing it needs root or sudo"
  sudo=(sudo)
fi
echo "installing postgresql: the tests start servers of their own"
if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
  # Debian would start a server as soon as the package is there.
  "${sudo[@]}" mkdir -p /etc/postgresql-common
  echo "create_main_cluster = false" |
    "${sudo[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
fi
"${sudo[@]}" apt-get update -qq &&
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 \
    apt-get install -y -qq postgresql ||
  leave_out "its package cannot be installed"
