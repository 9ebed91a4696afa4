# What state the TPU, the run on its workers and the run's results are in.
# shellcheck shell=bash disable=SC2034,SC2154

describe() {
  ask gcloud compute tpus "$1" describe "$TPU_NAME" --zone="$ZONE" \
    --project="$PROJECT" --format="value($2)"
}

# Sets $tpu_state: ACTIVE, ABSENT, GONE (a request without its node), UNKNOWN (Google
# does not say), or the word that Google has for the request or else for the node.
read_tpu_state() {
  local status=0
  describe queued-resources state.state || status=$?
  case $status in
    0) tpu_state=$answer ;;
    1) tpu_state=ABSENT ;;
    *) tpu_state=UNKNOWN ;;
  esac
  [[ $tpu_state == ACTIVE ]] || return 0
  describe tpu-vm state || status=$?
  case $status/$answer in
    0/READY) ;;
    0/*) tpu_state=$answer ;;
    1/*) tpu_state=GONE ;;
    *) tpu_state=UNKNOWN ;;
  esac
}

# Whether the TPU will not come back from this state by itself.
is_lost() {
  [[ $1 =~ ^(ABSENT|GONE|FAILED|SUSPENDED|PREEMPTED|TERMINATED|STOPPED|HIDDEN)$ ]]
}

# Whether it is being taken away now.
is_leaving() { [[ $1 =~ ^(SUSPENDING|DELETING|STOPPING|HIDING)$ ]]; }

# Sets $run_state: absent, alive, mixed (alive on some workers alone), bad_input (ended
# with exit status 2), ended, or unreachable (a worker does not answer).
read_run_state() {
  local command all alive ended status=0
  command="if [ -e dareu/repository/tpu_scripts/worker/state.sh ]"
  command+="; then $(worker_script state.sh "$RUN_NAME"); else echo dareu-state absent; fi"
  run_state=absent
  ask gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --project="$PROJECT" \
    --worker=all --command="$command" || status=$?
  dry && return 0
  all=$(grep -c '^dareu-state' <<<"$answer") || true
  alive=$(grep -c '^dareu-state alive' <<<"$answer") || true
  ended=$(grep -c '^dareu-state ended' <<<"$answer") || true
  if ((status || all == 0)); then
    run_state=unreachable
  elif ((alive == all)); then
    run_state=alive
  elif ((alive)); then
    run_state=mixed
  elif grep -q '^dareu-state ended 2$' <<<"$answer"; then
    run_state=bad_input
  elif ((ended)); then
    run_state=ended
  fi
}

# Whether results.json is in the bucket; 2: that cannot be seen now.
is_finished() { ask gcloud storage ls "gs://$BUCKET/runs/$RUN_NAME/results.json"; }
