#!/usr/bin/env bash
# supervise.sh NAME COMMAND...: runs the command, records its pid, log and exit status.
# shellcheck source=tpu_scripts/worker/common.sh
source "$(dirname "$0")/common.sh"
of_run "$1"
shift
cd "$root/repository"
export PATH=$root/venv/bin:$PATH PYTHONUNBUFFERED=1

trap '' HUP # the command inherits this: it outlives tmux, and saves when SIGTERM comes
echo "--- $(date '+%F %T') ${*@Q}" >>"$log"
"$@" >>"$log" 2>&1 &
child=$!
echo "$child" >"$state/pid"

trap 'interrupted=1; kill -TERM "$child" 2>/dev/null || true' TERM
while true; do # a signal cuts the wait short, not the command
  interrupted=0 status=0
  wait "$child" || status=$?
  ((interrupted)) || break
done
echo "--- $(date '+%F %T') exit status $status" >>"$log"
echo "$status" >"$state/exit_status"
mkdir -p "$mount/logs/$run" && cp "$log" "$mount/logs/$run/" # logs on disk go with the TPU
