#!/usr/bin/env bash
# Asks for the TPU and waits until it is ACTIVE; one that is there already is kept.
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=tpu_scripts/states.sh
source "$here/states.sh"
need PROJECT ZONE TPU_NAME ACCELERATOR_TYPE

if [[ -z ${RUNTIME_VERSION:-} ]]; then
  case $ACCELERATOR_TYPE in
    v5litepod-*) RUNTIME_VERSION=v2-alpha-tpuv5-lite ;;
    v5p-*) RUNTIME_VERSION=v2-alpha-tpuv5 ;;
    v6e-*) RUNTIME_VERSION=v2-alpha-tpuv6e ;;
    *) stop 2 "ACCELERATOR_TYPE=$ACCELERATOR_TYPE is none of v5litepod-N, v5p-N, v6e-N;" \
      "change it, or set RUNTIME_VERSION too" ;;
  esac
fi

read_tpu_state
[[ $tpu_state != UNKNOWN ]] || stop 1 "Google says nothing of $TPU_NAME; its message is above"
if [[ $tpu_state == ABSENT ]]; then
  options=(--node-id="$TPU_NAME" --zone="$ZONE" --project="$PROJECT"
    --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION")
  ((!SPOT)) || options+=(--spot)
  run_command gcloud compute tpus queued-resources create "$TPU_NAME" "${options[@]}"
  ! dry || exit 0
  read_tpu_state
fi

seen=
while [[ $tpu_state != ACTIVE ]]; do
  if is_lost "$tpu_state"; then
    run_command gcloud compute tpus queued-resources describe "$TPU_NAME" \
      --zone="$ZONE" --project="$PROJECT" --format='yaml(state)' || true
    stop 1 "$TPU_NAME is $tpu_state; run delete.sh, then create.sh again" \
      "(FAILED: is there quota for $ACCELERATOR_TYPE in $ZONE?)"
  fi
  if [[ $tpu_state != "$seen" ]]; then
    say "$TPU_NAME is $tpu_state; waiting (Ctrl-C leaves the request in the queue)"
  fi
  seen=$tpu_state
  sleep "$POLL_SECONDS"
  read_tpu_state
done
say "$TPU_NAME is ACTIVE"
