#!/usr/bin/env bash
# What tpu_vm.sh runs on each host. All of it lies in ~/mmeureka: code, settings, .venv, log, and the lock of a run that is under way.
#   tpu_host.sh prepare | start | run | stop
set -euo pipefail
[[ ${1:-} =~ ^(prepare|start|run|stop)$ ]] || { sed -nE '2,/^[^#]/s/^#( |$)//p' "$0"; exit 2; }
umask 077
cd ~/mmeureka

is_free() { flock -n lock true; }

case "$1" in
  prepare)
    if ! is_free; then
      echo "$HOSTNAME: a run is under way here and is left as it is"
      rm -rf new
      exit
    fi
    rm -rf code
    mv new code
    export PATH="$HOME/.local/bin:$PATH"
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    if [[ ! -x .venv/bin/python ]]; then
      rm -rf .venv
      uv venv --quiet --python 3.12 .venv # images have 3.10; the newest JAX wants 3.12
    fi
    # Editable, so that the code is that of ./code whatever uv takes for installed.
    uv pip install --quiet --python .venv/bin/python --editable './code[tpu]'
    ;;
  start)
    is_free || exit 0
    rm -f pid
    setsid nohup bash code/launch/tpu_host.sh run >>log 2>&1 </dev/null &
    for _ in {1..100}; do [[ -e pid ]] || sleep 0.1; done
    [[ -e pid ]] || { echo "$HOSTNAME: it did not start; see ~/mmeureka/log" >&2; exit 1; }
    echo "$HOSTNAME: started; its log is ~/mmeureka/log"
    ;;
  run)
    exec 9>lock
    flock -w 5 9 || exit 0 # another start was faster
    echo $$ >pid
    umask 022 # others may look at what is in run_dir
    arguments=()
    # shellcheck source=/dev/null
    source code/settings
    cd code
    exec launch/again.sh ../.venv/bin/mmeureka train "${arguments[@]}"
    ;;
  stop)
    if is_free; then
      echo "$HOSTNAME: no run is under way here"
    else
      kill -TERM "$(cat pid)"
      echo "$HOSTNAME: SIGTERM sent; the run ends after the step under way"
    fi
    ;;
esac
