# Where a worker keeps things; sourced by the other scripts in this folder.
# shellcheck shell=bash disable=SC2034,SC2154
set -euo pipefail

root=$HOME/dareu
mount=${DAREU_MOUNT:-/mnt/dareu} # the bucket; tests have another
metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes
worker=$(curl -sf -H 'Metadata-Flavor: Google' "$metadata/agent-worker-number") || worker=0

# of_run NAME: the files that say how it fares.
of_run() {
  run=$1
  state=$root/state/$run
  log=$state/worker-$worker.log
}

# Whether the recorded process is there and is this run, not another with its number.
is_alive() {
  [[ -f $state/pid ]] && pid=$(<"$state/pid") &&
    grep -qzE -- "/runs/$run\$" "/proc/$pid/cmdline" 2>/dev/null
}
