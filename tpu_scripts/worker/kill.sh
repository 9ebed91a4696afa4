#!/usr/bin/env bash
# kill.sh NAME SIGNAL: sends the signal to the run's recorded process.
# shellcheck source=tpu_scripts/worker/common.sh
source "$(dirname "$0")/common.sh"
of_run "$1"

if is_alive; then
  kill -s "$2" "$pid"
  echo "worker $worker: sent SIG$2 to $run, pid $pid"
else
  echo "worker $worker: $run is not alive"
fi
