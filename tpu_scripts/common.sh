# Settings, and how commands are printed and executed; the other scripts source it.
# shellcheck shell=bash disable=SC2034,SC2154
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mount=/mnt/dareu # where every worker sees the bucket

say() { printf '%s\n' "$*" >&2; }

# stop STATUS MESSAGE...: 2 for settings and arguments, 1 for everything else.
stop() {
  local status=$1
  shift
  say "${0##*/}: $*"
  exit "$status"
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  stop 2 "bash $BASH_VERSION is too old; 4.4 or newer is needed"

# shellcheck source=/dev/null
[[ ! -f $here/env.sh ]] || source "$here/env.sh"
: "${SPOT:=1}" "${PYTHON_VERSION:=3.12}" "${MAX_RESTARTS:=20}" "${POLL_SECONDS:=60}"
[[ -n ${OVERRIDES:-} ]] || OVERRIDES=()
BUCKET=${BUCKET:-}
BUCKET=${BUCKET#gs://}
BUCKET=${BUCKET%/}

# must NAME PATTERN WHAT: the setting, where it has a value, looks like that.
must() {
  [[ -z ${!1:-} || ${!1} =~ ^($2)$ ]] || stop 2 "$1=${!1} must be $3; change it in env.sh"
}

must SPOT '0|1' '0 or 1'
must TPU_NAME '[a-z][a-z0-9-]*' 'lower-case letters, digits and -'
must RUN_NAME '[A-Za-z0-9][A-Za-z0-9_-]*' 'letters, digits, _ and -'
must BUCKET '[a-z0-9][a-z0-9._-]+' "a bucket's name"
must PYTHON_VERSION '3\.[0-9]+(\.[0-9]+)?' 'a version such as 3.12'
must MAX_RESTARTS '[0-9]+' 'a whole number'
must POLL_SECONDS '[0-9]+(\.[0-9]+)?' 'a number of seconds'

# need NAME...: each of these settings has a value.
need() {
  local name
  for name; do
    [[ -n ${!name:-} ]] || stop 2 "$name is not set; set it in env.sh, as env.example.sh says"
  done
}

# quoted WORD...: the words as a shell reads them, on one line.
quoted() {
  local word line=
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  printf '%s' "${line# }"
}

dry() { [[ -n ${DRY_RUN:-} && $DRY_RUN != 0 ]]; }

run_command() {
  say "+ $(quoted "$@")"
  dry || "$@"
}

# ask COMMAND...: its output in $answer; 1: what it asks for is not there, 2: no answer.
ask() {
  local complaint status=0
  answer=
  say "+ $(quoted "$@")"
  dry && return 1
  complaint=$(mktemp)
  answer=$("$@" 2>"$complaint") || status=2
  if ((status)); then
    if grep -qE 'NOT_FOUND|matched no objects' "$complaint"; then
      status=1
    else
      cat "$complaint" >&2
    fi
  fi
  rm -f "$complaint"
  return "$status"
}

# on_worker WORKER COMMAND: a line of shell on one worker, or on all at once.
on_worker() {
  run_command gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" \
    --project="$PROJECT" --worker="$1" --command="$2"
}

on_workers() { on_worker all "$1"; }

# worker_script NAME ARGUMENT...: the line that runs worker/NAME on a worker.
worker_script() {
  local name=$1
  shift
  printf '%s' "bash dareu/repository/tpu_scripts/worker/$name $(quoted "$@")"
}
