#!/usr/bin/env bash
# profile.sh START:STOP starts the run and traces these iterations; profile.sh fetch
# copies the traces here.
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=tpu_scripts/states.sh
source "$here/states.sh"

if [[ ${1:-} == fetch ]]; then
  need BUCKET RUN_NAME
  run_command mkdir -p "profiles/$RUN_NAME"
  run_command gcloud storage rsync "gs://$BUCKET/runs/$RUN_NAME/profile" \
    "profiles/$RUN_NAME" --recursive
  say "open it: pip install xprof && xprof --logdir=profiles/$RUN_NAME --port=6006"
  exit 0
fi
if [[ ! ${1:-} =~ ^([0-9]+):([0-9]+)$ ]] || ((BASH_REMATCH[1] >= BASH_REMATCH[2])); then
  stop 2 "usage: profile.sh START:STOP, such as 10:13, or profile.sh fetch"
fi
need PROJECT ZONE TPU_NAME RUN_NAME
read_run_state
[[ ! $run_state =~ ^(alive|mixed)$ ]] ||
  stop 1 "$RUN_NAME is alive and cannot begin to trace; end it with kill.sh first, it continues"
"$here/run.sh" --profile "$1"
