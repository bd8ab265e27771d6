#!/usr/bin/env bash
# Three nodes on this machine that share a PostgreSQL of their own, until they are stopped (Ctrl-C).
# Everything is kept in a temporary directory and removed at the end.
set -euo pipefail

stead=${1:?the program}
programs=$(compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -1) || true
if [ -z "$programs" ]; then
  echo "PostgreSQL is not installed (Debian's package: postgresql)" >&2
  exit 1
fi
directory=$(mktemp -d)
# PostgreSQL does not run as root.
plain=()
if [ "$(id -u)" -eq 0 ]; then
  chown nobody "$directory"
  plain=(setpriv --reuid nobody --regid nogroup --clear-groups)
fi
nodes=()
database=
stop() {
  trap - EXIT INT TERM
  echo
  echo "stopping: each node hands over what it owns"
  for node in "${nodes[@]}"; do kill -TERM "$node" 2>/dev/null || true; done
  for node in "${nodes[@]}"; do wait "$node" 2>/dev/null || true; done
  if [ -n "$database" ]; then
    kill -INT "$database" 2>/dev/null || true
    wait "$database" 2>/dev/null || true
  fi
  rm -rf "$directory"
  echo "stopped"
}
trap stop EXIT
trap 'exit 0' INT TERM

free_port() {
  local port
  for port in $(seq "$1" "$(($1 + 200))"); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
  echo "no port is free from $1 on" >&2
  return 1
}

echo "starting PostgreSQL in $directory"
(cd / && "${plain[@]}" "$programs/initdb" -D "$directory/data" -U stead -A trust -E UTF8 --locale=C \
  --no-sync >/dev/null)
port=$(free_port 15432)
# In a session of its own: Ctrl-C is for this script, and nodes need the database to hand over.
(cd / && exec setsid "${plain[@]}" "$programs/postgres" -D "$directory/data" -h 127.0.0.1 -p "$port" \
  -k "$directory" 2>"$directory/postgres.log") &
database=$!
for _ in $(seq 100); do
  "$programs/pg_isready" -q -h 127.0.0.1 -p "$port" && break
  sleep 0.1
done

(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$directory/secret")
addresses=()
for name in a b c; do
  listen=127.0.0.1:$(free_port $((8080 + ${#nodes[@]} * 10)))
  peers=127.0.0.1:$(free_port $((7080 + ${#nodes[@]} * 10)))
  "$stead" serve --store "postgres://stead@127.0.0.1:$port/postgres" --node-id "$name" \
    --listen "$listen" --peer-listen "$peers" --cluster-secret-file "$directory/secret" \
    2>"$directory/$name.log" &
  nodes+=($!)
  addresses+=("$listen")
  for _ in $(seq 100); do
    grep -q "listening on" "$directory/$name.log" 2>/dev/null && break
    if ! kill -0 $! 2>/dev/null; then
      cat "$directory/$name.log" >&2
      exit 1
    fi
    sleep 0.1
  done
  echo "node $name (process $!) listens on http://$listen, its log is $directory/$name.log"
done

cat <<TRY

Three lines to try in another terminal: a counter, the same from all three, and who owns what.

curl --json 5 http://${addresses[0]}/v1/entities/counter/visits/calls/add
for a in ${addresses[*]}; do curl http://\$a/v1/entities/counter/visits/queries/value; echo; done
curl http://${addresses[1]}/v1/placement/counter/visits

Kill any node with kill -9 and go on: the others take over within five seconds. Ctrl-C stops everything.
TRY
wait -n "$database" || true
echo "PostgreSQL has stopped" >&2
