#!/usr/bin/env bash
# Starts a Slurm cluster of one node on this machine, for tests/sweep/test_slurm.py: munged, slurmctld and slurmd, as
# root, without systemd, cgroups or accounting. Everything it writes is in FOLDER.
#
#   eval "$(tests/slurm/start_one_node.sh [--install] [FOLDER])"
#
# --install  first installs Debian's slurm-wlm and munge with apt-get
# FOLDER     its state; /tmp/fedbias-one-node-slurm where none is given, and it must not exist
#
# Standard output is the line that makes sinfo, sbatch and the tests find it: export SLURM_CONF=... It listens on
# 127.0.0.1 only. tests/slurm/stop_one_node.sh [FOLDER] stops it and deletes FOLDER. When it does not start, it is
# stopped, and the ends of the logs are shown.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin # where Debian has the daemons
here=$(cd "$(dirname "$0")" && pwd)

install=no
if [ "${1:-}" = --install ]; then
  install=yes
  shift
fi
folder=${1:-/tmp/fedbias-one-node-slurm}
host=$(hostname -s)

fail() {
  echo "start_one_node.sh: $*" >&2
  exit 1
}

[ "$(id -u)" = 0 ] || fail "must be run as root, which Slurm's node daemon needs."
if [ $install = yes ]; then
  apt-get update >&2
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends slurm-wlm munge >&2
fi
for program in munged slurmctld slurmd sinfo; do
  command -v $program >/dev/null || fail "no $program; on Debian: $0 --install, or apt-get install slurm-wlm munge"
done
[ ! -e "$folder" ] || fail "$folder exists: stop what runs there with tests/slurm/stop_one_node.sh $folder"
mkdir "$folder"
folder=$(cd "$folder" && pwd)
mkdir "$folder"/{munge,state,spool}
chmod 700 "$folder/munge"
(
  umask 077
  head -c 1024 /dev/urandom >"$folder/munge/key"
)

# linuxproc finds the processes of a job by their parents, so that no cgroup is needed. The two GPUs are none: they are
# there to be asked for. KillWait is what cancelled jobs get to end in, MinJobAge how long ended ones can be asked about.
# cred_expire is also what a requeued job waits; one that is let run before that may be refused as the one just killed.
cat >"$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=15
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
SlurmdTimeout=3600
JobRequeue=1
KillWait=5
MinJobAge=300
MaxArraySize=1001
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=1024 Gres=gpu:2
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
printf 'Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n' >"$folder/gres.conf"
export SLURM_CONF=$folder/slurm.conf

munged --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/munged.pid" \
  --log-file="$folder/munge/munged.log" --seed-file="$folder/munge/seed" --force >&2
slurmctld -c >&2
slurmd >&2
for _ in $(seq 60); do
  if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then
    echo "Slurm runs on $host; to stop it: tests/slurm/stop_one_node.sh $folder" >&2
    echo "export SLURM_CONF=$SLURM_CONF"
    exit
  fi
  sleep 0.5
done
tail -n 20 "$folder"/*.log "$folder"/munge/*.log >&2
"$here/stop_one_node.sh" "$folder" >&2
fail "the node did not become idle within 30 seconds."
