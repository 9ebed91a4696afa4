#!/usr/bin/env bash
# Stands in for gcloud: notes what it was asked, answers from the lists in $FAKE.
(IFS=$'\t'; printf '%s\n' "$*" >>"$FAKE/calls")

next() { # the first line of a list; its last line stays
  local lines
  mapfile -t lines <"$FAKE/$1"
  printf '%s\n' "${lines[0]}"
  ((${#lines[@]} == 1)) || printf '%s\n' "${lines[@]:1}" >"$FAKE/$1"
}

on_each() { # what the workers do, where they are played
  local home status=0
  for home in "$FAKE"/worker-*; do
    (cd "$home" && HOME=$home WORKER=${home##*-} bash -c "${1#--command=}") || status=$?
  done
  return "$status"
}

case "$*" in
  *"queued-resources describe"*"state.state"*) word=$(next queue) ;;
  *"tpu-vm describe"*) word=$(next node) ;;
  *"storage ls"*) word=$(next results) ;;
  *"tpu-vm ssh"*)
    compgen -G "$FAKE/worker-*" >/dev/null && { on_each "${@: -1}"; exit; }
    [[ $* == *state.sh* ]] || exit 0
    word=$(next run)
    word="dareu-state ${word//, /$'\n'dareu-state }"
    ;;
  *) exit 0 ;;
esac
case $word in
  *NONE) echo "ERROR: NOT_FOUND: Resource was not found; matched no objects" >&2 && exit 1 ;;
  *BROKEN) echo "ERROR: the network is down" >&2 && exit 1 ;;
  *) printf '%s\n' "$word" ;;
esac
