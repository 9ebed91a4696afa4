#!/usr/bin/env bash
# Follows a worker's log: logs.sh [WORKER]
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
need PROJECT ZONE TPU_NAME RUN_NAME
worker=${1:-0}
[[ $worker =~ ^[0-9]+$ ]] || stop 2 "no such worker: $worker; give a number, 0 is the first"

on_worker "$worker" "tail -n 100 -F dareu/state/$RUN_NAME/worker-$worker.log"
