#!/usr/bin/env bash
# Keeps the run going until its results are in the bucket: resume_loop.sh [--max-restarts N]
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=tpu_scripts/states.sh
source "$here/states.sh"
if [[ ${1:-} == --max-restarts ]]; then
  MAX_RESTARTS=${2:-}
  need MAX_RESTARTS
  must MAX_RESTARTS '[0-9]+' 'a whole number'
  shift 2
fi
(($# == 0)) || stop 2 "no such argument: $1; usage: resume_loop.sh [--max-restarts N]"
need PROJECT ZONE TPU_NAME ACCELERATOR_TYPE RUN_NAME CONFIG BUCKET REPOSITORY REVISION
patience=5 # looks at a run that is alive on some workers alone, before the rest is ended

step() { "$here/$1" "${@:2}" || { say "$1 failed (exit status $?)" && return 1; }; }

# Whatever is left of the TPU goes, unless it is there or on its way; then the same command.
begin() {
  if [[ $tpu_state != ABSENT ]] && is_lost "$tpu_state"; then
    step delete.sh --yes || return 1
  fi
  step create.sh && step setup.sh && step run.sh
}

starts=0 mixed=0
while true; do
  run_state=absent finished=0
  read_tpu_state
  [[ $tpu_state != ACTIVE ]] || read_run_state
  is_finished || finished=$?
  dry && finished=1
  printf -v now '%(%F %T)T'
  say "$now $TPU_NAME: $tpu_state; $RUN_NAME: $run_state"
  [[ $run_state == mixed ]] && mixed=$((mixed + 1)) || mixed=0
  [[ $run_state != alive || $starts != 0 ]] || starts=1 # somebody else's was the first
  [[ $tpu_state != UNKNOWN || $starts != 0 ]] ||
    stop 1 "Google says nothing of $TPU_NAME; its message is above"

  if ((finished == 0)); then
    say "$RUN_NAME is finished: gs://$BUCKET/runs/$RUN_NAME; delete.sh ends the costs"
    exit 0
  elif [[ $run_state == bad_input ]]; then
    on_worker 0 "tail -n 20 dareu/state/$RUN_NAME/worker-0.log" >&2 || true
    stop 1 "$RUN_NAME ended with exit status 2, bad input; mend it, then setup.sh and run.sh"
  elif ((mixed > patience)); then
    step kill.sh --force || true
  elif [[ $finished == 1 && $tpu_state != UNKNOWN && $run_state =~ ^(absent|ended)$ ]] &&
    ! is_leaving "$tpu_state"; then
    ((starts <= MAX_RESTARTS)) ||
      stop 1 "$RUN_NAME was restarted $MAX_RESTARTS times and is not finished; see logs.sh"
    starts=$((starts + 1))
    begin || say "could not start $RUN_NAME; trying again"
    ! dry || exit 0
  fi
  sleep "$POLL_SECONDS"
done
