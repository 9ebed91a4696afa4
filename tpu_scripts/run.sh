#!/usr/bin/env bash
# Starts the run on all workers, or continues it; arguments are passed on to dareu.
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=tpu_scripts/states.sh
source "$here/states.sh"
need PROJECT ZONE TPU_NAME RUN_NAME CONFIG BUCKET

read_run_state
case $run_state in
  alive)
    say "$RUN_NAME is already alive on every worker of $TPU_NAME; nothing was started"
    exit 0
    ;;
  mixed) stop 1 "$RUN_NAME is alive on some workers alone; end it with kill.sh --force first" ;;
  unreachable) stop 1 "the workers of $TPU_NAME do not answer; is it ACTIVE (create.sh)?" ;;
esac

command=(dareu run "$CONFIG" "${OVERRIDES[@]}" --out "$mount/runs/$RUN_NAME" --distributed "$@")
on_workers "$(worker_script run.sh "$RUN_NAME" "${command[@]}")"
say "logs.sh follows it; it is finished when gs://$BUCKET/runs/$RUN_NAME has results.json"
