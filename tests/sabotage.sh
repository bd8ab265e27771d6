#!/usr/bin/env bash
# Breaks one protection after the other and shows which tests notice. Fails where none does.
set -euo pipefail
cd "$(dirname "$0")/.."

all=${*:-X1 X2 X3 X4 X11 X12 X13 X15 X20 X21 X27 X31 X32}
build=(cargo test --release --locked -p stead-tests --features sabotage --test store --test semantics)
"${build[@]}" --no-run 2>/dev/null
unnoticed=()
for name in $all; do
  red=$(STEAD_SABOTAGE=$name timeout 180 "${build[@]}" --no-fail-fast 2>/dev/null |
    sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' | sort | tr '\n' ' ') || true
  if [ -n "$red" ]; then
    echo "$name turns red: $red"
  else
    echo "$name is NOT noticed"
    unnoticed+=("$name")
  fi
done
[ ${#unnoticed[@]} -eq 0 ]
