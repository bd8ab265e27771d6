#!/usr/bin/env bash
# Installs the published clients of Durable Functions into a directory of their own, for the tests that run them. Where
# that is not possible, those tests are left out, and say so.
set -euo pipefail

python_client=azure-functions-durable==1.7.0
javascript_client=durable-functions@3.5.0
to=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/stead/durable-clients}
leave_out() { echo "left out: the $1 client of Durable Functions, because it cannot be installed" >&2; }

python() {
  [ -e "$to/python/$python_client" ] && return
  rm -rf "$to/python"
  python3 -m venv "$to/python" && "$to/python/bin/pip" install --quiet "$python_client" &&
    touch "$to/python/$python_client"
}
javascript() {
  [ -e "$to/javascript/$javascript_client" ] && return
  rm -rf "$to/javascript"
  mkdir -p "$to/javascript"
  npm install --silent --no-fund --no-audit --prefix "$to/javascript" "$javascript_client" &&
    touch "$to/javascript/$javascript_client"
}
mkdir -p "$to"
command -v python3 >/dev/null && python >/dev/null 2>&1 || leave_out Python
command -v npm >/dev/null && javascript >/dev/null 2>&1 || leave_out JavaScript
