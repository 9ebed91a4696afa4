#!/usr/bin/env bash
# state.sh NAME: says how the run fares on this worker.
# shellcheck source=tpu_scripts/worker/common.sh
source "$(dirname "$0")/common.sh"
of_run "$1"

if is_alive; then
  echo "dareu-state alive"
elif [[ -s $state/exit_status ]]; then
  echo "dareu-state ended $(<"$state/exit_status")"
elif [[ -f $state/pid ]]; then
  echo "dareu-state ended unseen" # the machine was restarted
else
  echo "dareu-state absent"
fi
