#!/usr/bin/env bash
# run.sh NAME COMMAND...: starts the command in a tmux session of that name, once.
# shellcheck source=tpu_scripts/worker/common.sh
source "$(dirname "$0")/common.sh"
of_run "$1"

if is_alive; then
  echo "worker $worker: $run is already alive, pid $pid"
  exit 0
fi
if ! mountpoint -q "$mount"; then
  echo "worker $worker: $mount is not mounted; run setup.sh" >&2
  exit 1
fi
mkdir -p "$state"
rm -f "$state/pid" "$state/exit_status"
supervise=$(cd "$(dirname "$0")" && pwd)/supervise.sh
tmux new-session -d -s "$run" bash "$supervise" "$@"
for _ in {1..100}; do
  [[ ! -s $state/pid ]] || break
  sleep 0.1
done
echo "worker $worker: $run is started, pid $(<"$state/pid")"
