#!/usr/bin/env bash
# Submits this checkout to a GKE cluster through XPK (https://github.com/AI-Hypercomputer/xpk), on one TPU slice.
#   launch/xpk.sh [--env NAME] [--dry-run] --cluster CLUSTER --workload NAME --tpu-type v5litepod-64 --storage STORAGE \
#     [more options of `xpk workload create`] -- CONFIG run_dir=/MOUNT/FOLDER [overrides]
# XPK puts the checkout, less what .dockerignore names, into an image on top of python:3.12 (or --base-docker-image). run_dir lies
# on a storage that is attached to the cluster; compiled programs in JAX_COMPILATION_CACHE_DIR, or next to run_dir.
#   --env NAME    hand on this variable too; HF_TOKEN, WANDB_API_KEY, LIBTPU_INIT_ARGS, XLA_FLAGS and a few more always are. XPK
#                 reads them from this shell, not from its arguments; whoever may read the cluster's workloads can see them there.
#   --dry-run     print what would be done, without the values of secrets
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

options=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --help) usage; exit ;;
    --env) [[ $# -gt 1 ]] || wrong "--env needs a value"; pass_on "$2"; shift 2 ;;
    --dry-run) dry_run=yes; shift ;;
    --) shift; break ;;
    *) options+=("$1"); shift ;;
  esac
done
[[ $# -gt 0 ]] || wrong "-- CONFIG run_dir=/MOUNT/FOLDER is missing"
for option in --cluster --workload --tpu-type; do
  [[ " ${options[*]-} " == *" $option"[\ =]* ]] || wrong "$option is missing"
done

cache="$(shared_cache "$@")"
variables="$(mktemp)"
trap 'rm -f "$variables"' EXIT
{ # XPK takes the value of a name without one from this shell
  echo "MMEUREKA_DISTRIBUTED=1"
  echo "JAX_COMPILATION_CACHE_DIR=$cache"
  names_to_pass
} >"$variables"
for name in $(names_to_pass); do
  [[ ${!name} != *[\"\\]* ]] || wrong "$name has a quote or a backslash, which XPK cannot hand on"
  export "${name?}"
done
if [[ -n $dry_run ]]; then sed 's/^/environment: /' "$variables"; fi

# `exec`, because XPK sends SIGTERM to the shell that it runs this in. A restart resumes; 75: a process was lost. What
# comes later on the command line counts, so each of these can be set again.
run xpk workload create --num-slices 1 --base-docker-image python:3.12 --script-dir . --env-file "$variables" \
  --max-restarts 10 --restart-on-exit-codes 75 --termination-grace-period-seconds 900 \
  ${options[@]+"${options[@]}"} \
  --command "pip install --quiet '.[tpu]' && exec mmeureka train $(quoted "$@")"
