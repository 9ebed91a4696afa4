#!/usr/bin/env bash
# Deletes the TPU and its request; asks first, unless --yes. The bucket stays as it is.
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=tpu_scripts/states.sh
source "$here/states.sh"
need PROJECT ZONE TPU_NAME
[[ -z ${1:-} || $1 == --yes ]] || stop 2 "no such argument: $1; usage: delete.sh [--yes]"

read_tpu_state
if [[ $tpu_state == ABSENT ]] && ! dry; then
  say "there is no $TPU_NAME in $ZONE; nothing to delete"
  exit 0
fi
if [[ ${1:-} != --yes ]] && ! dry; then
  read -r -p "delete $TPU_NAME ($tpu_state) and what is on its disks? [y/N] " reply || true
  [[ ${reply:-} == [yY]* ]] || stop 1 "$TPU_NAME was not deleted"
fi
run_command gcloud compute tpus queued-resources delete "$TPU_NAME" --zone="$ZONE" \
  --project="$PROJECT" --force --quiet
