#!/usr/bin/env bash
# A SLURM of one node on this machine, without systemd and cgroups, to try out hydra/launcher=submitit_slurm.
#
#     apt-get install slurm-wlm                          # Debian; it brings munge
#     experiments/slurm.sh start FOLDER                  # as root; configuration, state and logs lie in FOLDER
#     export SLURM_CONF=FOLDER/slurm.conf                # for sbatch, squeue, ... and lighttoken.train
#     experiments/slurm.sh stop FOLDER
#
# CPUS (8) and MEGABYTES (64000) are what SLURM gives away; it does not hold jobs to them. PORT (6817) and the next one
# must be free.
set -euo pipefail
[ $# = 2 ] || { sed -n '2,9s/^# \?//p' "$0" >&2; exit 2; }
mkdir -p "$2"
folder=$(realpath "$2")
node=$(hostname -s)
export SLURM_CONF=$folder/slurm.conf

stop() {
  for name in slurmd slurmctld munged; do
    if [ -f "$folder/$name.pid" ]; then
      pid=$(cat "$folder/$name.pid")
      kill "$pid" 2> /dev/null || true
      while [ -d "/proc/$pid" ]; do sleep 0.1; done
      rm -f "$folder/$name.pid"
    fi
  done
}

start() {
  mkdir -p "$folder/state" "$folder/spool"
  [ -f "$folder/munge.key" ] || (umask 077; head -c 128 /dev/urandom > "$folder/munge.key")
  # A requeued job waits until the credentials of its first start have expired: cred_expire, in seconds.
  cat > "$SLURM_CONF" << CONF
ClusterName=lighttoken
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=${PORT:-6817}
SlurmdPort=$((${PORT:-6817} + 1))
SlurmUser=root
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=30
NodeName=$node NodeAddr=127.0.0.1 CPUs=${CPUS:-8} RealMemory=${MEGABYTES:-64000} State=UNKNOWN
PartitionName=normal Nodes=$node Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=urgent Nodes=$node MaxTime=INFINITE PriorityTier=2 State=UP
CONF
  # --force: the folder may be one that others can write.
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
  slurmctld
  slurmd
  for _ in $(seq 300); do
    [ "$(sinfo --noheader --format=%T 2> /dev/null | sort -u)" != idle ] || return 0
    sleep 0.1
  done
  echo "SLURM did not start within 30 s; see $folder/slurmctld.log and $folder/slurmd.log" >&2
  stop
  exit 1
}

case $1 in
  start | stop) "$1" ;;
  *) echo "unknown $1: start or stop" >&2; exit 2 ;;
esac
