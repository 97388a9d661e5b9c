#!/usr/bin/env bash
# Runs this checkout on every host of an existing TPU VM slice.
#   launch/tpu_vm.sh --name SLICE --zone ZONE [--project PROJECT] -- CONFIG [overrides]
# Needs `gcloud`, an image whose python3 is 3.11 or newer (or REMOTE_PYTHON=python3.12), and a run_dir that all hosts share.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
usage() { sed -n '2,4s/^# *//p' "$0" >&2; exit 2; }

name="" zone="" project=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --name) name="${2:?}"; shift 2 ;;
    --zone) zone="${2:?}"; shift 2 ;;
    --project) project=(--project "${2:?}"); shift 2 ;;
    --) shift; break ;;
    *) usage ;;
  esac
done
[[ -n $name && -n $zone && $# -gt 0 ]] || usage

tpu() { gcloud compute tpus tpu-vm "$1" "${@:2}" --zone "$zone" "${project[@]}" --worker=all; }

archive="$(mktemp -d)/mmeureka_jax.tar.gz"
trap 'rm -rf "$(dirname "$archive")"' EXIT
git archive --format=tar.gz --output="$archive" HEAD # what is committed, nothing else
tpu scp "$archive" "$name:mmeureka_jax.tar.gz"

python="${REMOTE_PYTHON:-python3}"
tpu ssh "$name" --command "set -e
  mkdir -p mmeureka_jax && tar -xzf mmeureka_jax.tar.gz -C mmeureka_jax && cd mmeureka_jax
  $python -m venv .venv && .venv/bin/pip install --quiet '.[tpu]'"

# On a TPU VM jax.distributed finds the other hosts by itself. printf %q keeps brackets and stars of overrides whole.
tpu ssh "$name" --command "cd mmeureka_jax && MMEUREKA_DISTRIBUTED=1 .venv/bin/mmeureka train $(printf '%q ' "$@")"
