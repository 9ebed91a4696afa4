#!/usr/bin/env bash
# Makes every worker ready for a run: Python, packages, the repository, the bucket.
# shellcheck source=tpu_scripts/common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=tpu_scripts/states.sh
source "$here/states.sh"
need PROJECT ZONE TPU_NAME RUN_NAME BUCKET REPOSITORY REVISION

read_run_state
case $run_state in
  alive | mixed) stop 1 "$RUN_NAME is alive on $TPU_NAME; end it with kill.sh first" ;;
  unreachable) stop 1 "the workers of $TPU_NAME do not answer; is it ACTIVE (create.sh)?" ;;
esac

# What runs on the workers afterwards is what REVISION has, not what is on this machine.
git="git -C dareu/repository"
checkout="git init --quiet dareu/repository"
checkout+=" && $git fetch --quiet --depth=1 $(quoted "$REPOSITORY" "$REVISION")"
checkout+=" && $git checkout --quiet --force --detach FETCH_HEAD"
on_workers "$checkout && $(worker_script setup.sh "$BUCKET" "$PYTHON_VERSION")"

# On all at once: none goes on until all are there.
on_workers "dareu/venv/bin/python dareu/repository/tpu_scripts/worker/devices.py $mount"
