#!/usr/bin/env bash
# Installs what compiling RocksDB needs: a C++ compiler and libclang. Says what it does.
set -euo pipefail

missing=()
command -v c++ >/dev/null || missing+=(g++)
find /usr/lib /usr/local/lib -name 'libclang.so*' -o -name 'libclang-[0-9]*.so*' 2>/dev/null |
  grep -q . || [ -n "${LIBCLANG_PATH:-}" ] || missing+=(libclang-dev)
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
  echo "stead needs ${missing[*]} (Debian's names) to compile RocksDB:" >&2
  echo "install a C++ compiler and libclang, then run this again." >&2
  exit 1
fi
sudo=()
[ "$(id -u)" -eq 0 ] || sudo=(sudo)
echo "installing ${missing[*]}: RocksDB is compiled from C++"
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}"
