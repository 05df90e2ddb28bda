#!/usr/bin/env bash
# A Flower federation over TLS on this machine, set up as on several: a SuperLink and three authenticated SuperNodes, each
# with a folder, a key, a certificate, rows and processes of its own. Runs, kills a SuperNode after the first round, and
# ends everything, also after an error or Ctrl-C. docs/flower.md explains the steps.
#   run_scripts/flower_federation.sh [--folder DIR] [--same_rows] [--keep_all] [--hold] [flags of fedbias run]
# --folder: where all files go; a new temporary folder without it. The run's output is DIR/output.
# --same_rows: the nodes take the data that the run's flags name, as in fedbias run; each has two files of its own without it.
# --keep_all: kill no SuperNode. --hold: run nothing; keep the federation up until Ctrl-C (DIR/ready is there when it is up).
set -euo pipefail
set -m # every background job is a process group, which is ended as a whole
umask 077

folder='' own_rows=1 victim=2 hold=''
while [ $# -gt 0 ]; do
  case $1 in
    --folder) folder=${2:?--folder needs a folder} && shift ;;
    --same_rows) own_rows='' ;;
    --keep_all) victim='' ;;
    --hold) hold=1 ;;
    *) break ;;
  esac
  shift
done
[ $# -gt 0 ] || set -- --data_dir mini --num_rounds 3 --client_samples 20 --max_steps 2 --batch_size 4 \
  --heldout_samples 10 --bias_benchmarks crows_pairs --aggregation bama

root=$(cd "$(dirname "$0")/.." && pwd)
if ! command -v flower-superlink fedbias >/dev/null; then
  cd "$root"
  # shellcheck source=run_scripts/environment.sh
  source run_scripts/environment.sh
  make_venv .venv flower
  cd - >/dev/null
fi
folder=${folder:-$(mktemp -d)}
mkdir -p "$folder"/{ca,server,node0,node1,node2,user}
folder=$(cd "$folder" && pwd)
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export FLWR_SUPEREXEC_TASK_POLL_INTERVAL=${FLWR_SUPEREXEC_TASK_POLL_INTERVAL:-0.1}
unset PYTHONDONTWRITEBYTECODE # every message starts a Python process

started=()
# shellcheck disable=SC2329
end_all() { # kindly, after ten seconds for good
  trap - EXIT INT TERM
  exec 2>/dev/null # bash tells of every job that is ended
  local pid
  for pid in ${started[@]+"${started[@]}"}; do kill -TERM -- "-$pid" || true; done
  for pid in ${started[@]+"${started[@]}"}; do
    for _ in {1..100}; do
      kill -0 -- "-$pid" || break
      sleep 0.1
    done
    kill -KILL -- "-$pid" || true
  done
  wait || true
  rm -f "$folder/ready"
}
trap end_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

end_at_once() { # end_at_once PID: without a chance to say goodbye, as when a machine fails
  { kill -KILL -- "-$1" && wait "$1"; } 2>/dev/null || true
}

start() { # start WHERE NAME COMMAND...: in the folder WHERE, in the background; WHERE/NAME.log and WHERE/NAME.pid
  local where=$folder/$1 name=$2
  shift 2
  (cd "$where" && FLWR_HOME=$where/flwr exec "$@") >"$where/$name.log" 2>&1 </dev/null &
  echo $! >"$where/$name.pid"
  started+=($!)
}

wait_for() { # wait_for WHERE NAME PORT: until it listens; the end of its log where it does not
  local where=$folder/$1 name=$2
  for _ in {1..300}; do
    (: >"/dev/tcp/127.0.0.1/$3") 2>/dev/null && return
    kill -0 "$(cat "$where/$name.pid")" 2>/dev/null || break
    sleep 0.2
  done
  echo "$where/$name.log: $name does not listen:" >&2
  tail -n 20 "$where/$name.log" >&2
  return 1
}

certificate() { # certificate WHERE: a key and a certificate for this machine, signed by the federation's own authority
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$1" -keyout "$folder/$1/tls.key" |
    openssl x509 -req -days 30 -CA "$folder/ca/ca.pem" -CAkey "$folder/ca/ca.key" -CAcreateserial \
      -extfile <(echo subjectAltName=DNS:localhost,IP:127.0.0.1) -out "$folder/$1/tls.pem"
  cp "$folder/ca/ca.pem" "$folder/$1/ca.pem" # what it knows the others by
  openssl rand -hex 32 >"$folder/$1/superexec.secret"
}

own_files() { # own_files NODE: every third row of the bundled data, in the node's folder; prints them for --node-config
  local kind
  for kind in clean biased; do
    awk -v node="$1" 'NR % 3 == node' "$root/fedbias_plugin/assets/mini/$kind.jsonl" >"$folder/node$1/$kind.jsonl"
    printf ' %s_dataset="%s"' "$kind" "$folder/node$1/$kind.jsonl"
  done
}

read -r port port0 port1 port2 < <(python -c \
  'from fedbias_plugin.hosts.flower.embedded import free_ports as f; print(*f(4))')
ports=("$port0" "$port1" "$port2")

# The authority, and what each machine gets.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj "/CN=fedbias federation" \
  -keyout "$folder/ca/ca.key" -out "$folder/ca/ca.pem" 2>"$folder/ca/openssl.log"
for where in server node0 node1 node2; do certificate $where 2>>"$folder/ca/openssl.log"; done
tls=(--ssl-ca-certfile ca.pem --ssl-certfile tls.pem --ssl-keyfile tls.key)
isolated=(--isolation process --superexec-auth-secret-file superexec.secret)
superexec=(flower-superexec --root-certificates ca.pem --superexec-auth-secret-file superexec.secret --runtime-api-address)

# The server.
start server superlink flower-superlink --host 127.0.0.1 --port "$port" "${tls[@]}" "${isolated[@]}" \
  --enable-supernode-auth --disable-runtime-dependency-installation
wait_for server superlink "$port"
start server superexec "${superexec[@]}" "127.0.0.1:$port"

# Whoever runs things there.
export FLWR_HOME=$folder/user
cat >"$FLWR_HOME/config.toml" <<END
[superlink]
default = "tls"

[superlink.tls]
address = "127.0.0.1:$port"
root-certificates = "$folder/ca/ca.pem"
END

# The nodes: a key of its own each, whose public half is registered at the server.
for node in 0 1 2; do
  ssh-keygen -q -t ecdsa -b 384 -N '' -C "node$node" -f "$folder/node$node/node.key"
  flwr supernode register "$folder/node$node/node.key.pub" tls --name "node$node" >"$folder/node$node/register.log" ||
    { cat "$folder/node$node/register.log" >&2 && exit 1; }
  config="partition-id=$node num-partitions=3${own_rows:+$(own_files $node)}"
  start node$node supernode flower-supernode --superlink "127.0.0.1:$port" --root-certificates ca.pem \
    --auth-supernode-private-key node.key --host 127.0.0.1 --port "${ports[node]}" "${tls[@]}" "${isolated[@]}" \
    --node-config "$config"
  wait_for node$node supernode "${ports[node]}"
  start node$node superexec "${superexec[@]}" "127.0.0.1:${ports[node]}"
done
touch "$folder/ready"
echo "The federation is up. To run there yourself: FLWR_HOME=$FLWR_HOME fedbias flower run --federation tls ..."
if [ -n "$hold" ]; then
  wait "${started[0]}"
  exit
fi

fedbias flower run --federation tls "$@" --num_clients 3 --output_dir "$folder/output" &
run=$!
started+=("$run")
while kill -0 "$run" 2>/dev/null; do
  if [ -n "$victim" ] && grep -q '"round": *1[,}]' "$folder/output/metrics.jsonl" 2>/dev/null; then
    echo "Killing the SuperNode in $folder/node$victim."
    for name in superexec supernode; do end_at_once "$(cat "$folder/node$victim/$name.pid")"; done
    victim=''
  fi
  sleep 0.5
done
code=0
wait "$run" || code=$?
echo "The run in $folder/output ended with $code."
exit "$code"
