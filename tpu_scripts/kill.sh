#!/usr/bin/env bash
# Ends the run so that it saves first (SIGTERM); kill.sh --force ends one that hangs (SIGKILL).
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
need PROJECT ZONE TPU_NAME RUN_NAME
case ${1:-} in
  '') signal=TERM ;;
  --force) signal=KILL ;;
  *) stop 2 "no such argument: $1; usage: kill.sh [--force]" ;;
esac

on_workers "$(worker_script kill.sh "$RUN_NAME" "$signal")"
