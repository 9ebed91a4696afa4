# Settings: cp tpu_scripts/env.example.sh tpu_scripts/env.sh, then fill that in.
# What is in the environment already wins: RUN_NAME=second tpu_scripts/run.sh
# shellcheck shell=bash disable=SC2034

PROJECT=${PROJECT:-}                # Google Cloud project that has the TPU quota
ZONE=${ZONE:-us-west4-a}            # one that has the chips: cloud.google.com/tpu/docs/regions-zones
TPU_NAME=${TPU_NAME:-dareu}         # of the queued resource and of its node
ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-v5litepod-16} # v5litepod-16 (v5e), v5p-8, v6e-8 ...
RUNTIME_VERSION=${RUNTIME_VERSION:-} # empty: the image that belongs to the accelerator type
SPOT=${SPOT:-1}                     # 1: may be taken away at any time, costs less; 0: on demand

BUCKET=${BUCKET:-}                  # holds runs/, models/ and logs/; in the region of ZONE
REPOSITORY=${REPOSITORY:-}          # git URL of this repository, readable from the TPU
REVISION=${REVISION:-main}          # a tag or a whole commit id keeps all hosts the same
PYTHON_VERSION=${PYTHON_VERSION:-3.12} # the one that requirements-tpu.txt is for

RUN_NAME=${RUN_NAME:-tofu_llama2_7b} # the run folder is gs://BUCKET/runs/RUN_NAME
CONFIG=${CONFIG:-experiments/tofu_llama2_7b/config.yaml} # path in the repository
OVERRIDES=(                         # key=value, each one word
  model.path=/mnt/dareu/models/llama2-7b-chat
  classifier.model.path=/mnt/dareu/models/tinyllama-1.1b-chat
  prior.model.path=/mnt/dareu/models/tinyllama-1.1b-chat
  # 'methods=[dareu, npo]'
)

MAX_RESTARTS=${MAX_RESTARTS:-20}    # of resume_loop.sh
POLL_SECONDS=${POLL_SECONDS:-60}    # between two looks at a state
