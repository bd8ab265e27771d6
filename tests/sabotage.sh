#!/usr/bin/env bash
# Breaks one protection after the other and shows which tests notice. Fails where none does.
set -euo pipefail
cd "$(dirname "$0")/.."

# Number and name of each.
list=$(sed -n 's/^    \(X[0-9]*\) \([A-Za-z]*\) breaks.*/\1 \2/p' entities/src/sabotage.rs)
all=${*:-$(cut -d ' ' -f 1 <<<"$list")}
run=(cargo test --release --locked --features stead/sabotage,stead/server -p stead-entities -p stead -p stead-tests
  --lib --bins --test workflows --test store --test semantics --test http --test simulation)
# What takes real nodes, whose wall clocks differ.
nodes=(cargo test --release --locked --features stead/sabotage,stead/server -p stead-tests --bins --test cluster)
# The tests start the binaries, and building tests alone leaves older ones in place.
cargo build --release --locked --features stead/sabotage,stead/server -p stead -p stead-tests --bins
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
for chosen in $all; do
  read -r number name < <(grep -E "(^| )$chosen( |$)" <<<"$list") || {
    echo "there is no sabotage $chosen"
    exit 1
  }
  # The tests of the broken build fail; what they say is kept, and shown where no test turned red.
  tests=("${run[@]}" --no-fail-fast "${skip[@]}")
  [ "$number" = X7 ] && tests=("${nodes[@]}" -- wall_clocks)
  [ "$number" = X62 ] && tests=("${nodes[@]}" -- nodes_that_start)
  STEAD_SABOTAGE=$name timeout 300 "${tests[@]}" >"$log" 2>&1 || true
  red=$(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log" | sort | tr '\n' ' ')
  if [ -n "$red" ]; then
    echo "$number $name turns red: $red"
  else
    echo "$number $name is NOT noticed; the end of what was said:"
    tail -n 5 "$log"
    unnoticed+=("$number $name")
  fi
done
[ ${#unnoticed[@]} -eq 0 ]
