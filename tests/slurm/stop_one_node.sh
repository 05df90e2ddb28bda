#!/usr/bin/env bash
# Stops the Slurm that tests/slurm/start_one_node.sh has started, with all its jobs, and deletes its folder.
#
#   tests/slurm/stop_one_node.sh [FOLDER]      the one given to start_one_node.sh, if any
set -euo pipefail
folder=${1:-/tmp/fedbias-one-node-slurm}
if [ ! -f "$folder/slurm.conf" ]; then
  echo "stop_one_node.sh: no slurm.conf in $folder: nothing was started there." >&2
  exit 1
fi
export SLURM_CONF=$folder/slurm.conf

scancel --user="$(id -un)" 2>/dev/null || true
for _ in $(seq 60); do # jobs have KillWait seconds to end
  [ -n "$(squeue --noheader 2>/dev/null)" ] || break
  sleep 0.5
done
for file in "$folder/slurmd.pid" "$folder/slurmctld.pid" "$folder/munge/munged.pid"; do
  if pid=$(cat "$file" 2>/dev/null); then
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 40); do
      [ -d "/proc/$pid" ] && ! grep -q '^State:.*zombie' "/proc/$pid/status" || break
      sleep 0.25
    done
  fi
done
rm -rf "$folder"
