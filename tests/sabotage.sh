#!/usr/bin/env bash
# Breaks one protection after the other and shows which tests notice. Fails where none does.
set -euo pipefail
cd "$(dirname "$0")/.."

all=${*:-X1 X2 X3 X4 X5 X6 X7 X8 X9 X10 X11 X12 X13 X14 X15 X18 X19 X20 X21 X22 X26 X27 X28 X29 X30 X31 X32}
run=(cargo test --release --locked --features stead/sabotage -p stead -p stead-tests --lib --bins
  --test store --test semantics --test http --test simulation)
# What takes real nodes, whose wall clocks differ.
nodes=(cargo test --release --locked --features stead/sabotage -p stead-tests --bins --test cluster)
"${run[@]}" --no-run
"${nodes[@]}" --no-run
# Half a minute that no sabotage is about.
skip=(-- --skip clients_that_crawl)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! "${run[@]}" "${skip[@]}" >"$log" 2>&1; then
  echo "the tests fail without any sabotage:"
  grep -E '^test .* FAILED$|^error' "$log"
  exit 1
fi
unnoticed=()
for name in $all; do
  # The tests of the broken build fail; what they say is kept, and shown where no test turned red.
  tests=("${run[@]}" --no-fail-fast "${skip[@]}")
  [ "$name" = X7 ] && tests=("${nodes[@]}" -- wall_clocks)
  STEAD_SABOTAGE=$name timeout 300 "${tests[@]}" >"$log" 2>&1 || true
  red=$(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log" | sort | tr '\n' ' ')
  if [ -n "$red" ]; then
    echo "$name turns red: $red"
  else
    echo "$name is NOT noticed; the end of what was said:"
    tail -n 5 "$log"
    unnoticed+=("$name")
  fi
done
[ ${#unnoticed[@]} -eq 0 ]
