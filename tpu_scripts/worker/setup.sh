#!/usr/bin/env bash
# setup.sh BUCKET PYTHON_VERSION: packages, Python and the bucket of one worker.
# shellcheck source=tpu_scripts/worker/common.sh
source "$(dirname "$0")/common.sh"
bucket=$1 python=$2
uv_version=0.13.9 # decides which build of Python the workers get
repository=$root/repository

if ! command -v gcsfuse >/dev/null || ! command -v tmux >/dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  curl -sSf https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  for attempt in {1..30}; do # a machine that has just booted updates itself
    sudo apt-get update -qq && break
    ((attempt < 30)) || exit 1
    sleep 10
  done
  sudo apt-get install -qq -y -o DPkg::Lock::Timeout=300 gcsfuse tmux >/dev/null
fi

uv=$root/bin/uv
if [[ $("$uv" --version 2>/dev/null) != "uv $uv_version"* ]]; then
  curl -LsSf "https://astral.sh/uv/$uv_version/install.sh" |
    env UV_UNMANAGED_INSTALL="$root/bin" sh
fi
if [[ $("$root/venv/bin/python" --version 2>/dev/null) != "Python $python"* ]]; then
  "$uv" venv --quiet --clear --managed-python --python "$python" "$root/venv"
fi
export VIRTUAL_ENV=$root/venv
"$uv" pip install --quiet --requirements "$repository/requirements-tpu.txt"
"$uv" pip install --quiet --no-deps --editable "$repository" # the versions stay as pinned
"$uv" pip check --quiet

# All hosts write one run folder: nothing of what another host does may be cached.
if seen=$(findmnt -no SOURCE "$mount"); then
  if [[ $seen != "$bucket" ]] || ! ls "$mount" >/dev/null; then
    sudo umount --lazy "$mount" # another bucket, or its gcsfuse has died
  fi
fi
if ! findmnt "$mount" >/dev/null; then
  sudo install -d -o "$(id -u)" -g "$(id -g)" "$mount"
  gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 \
    --metadata-cache-negative-ttl-secs=0 "$bucket" "$mount"
fi
echo "worker $worker: $("$root/venv/bin/python" --version), $(gcsfuse --version)," \
  "dareu at $(git -C "$repository" rev-parse --short HEAD), gs://$bucket at $mount"
