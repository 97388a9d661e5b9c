#!/usr/bin/env bash
# Submits this checkout to a GKE cluster through XPK (https://github.com/AI-Hypercomputer/xpk), on one TPU slice.
#   launch/xpk.sh --cluster CLUSTER --workload NAME --tpu-type v5litepod-64 -- CONFIG [overrides]
# XPK puts the checkout into an image on top of IMAGE (default python:3.12). run_dir must be on a storage attached to the cluster.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
usage() { sed -n '2,4s/^# *//p' "$0" >&2; exit 2; }

cluster="" workload="" tpu_type=""
while [[ $# -gt 0 ]]; do
  case "$1" in
    --cluster) cluster="${2:?}"; shift 2 ;;
    --workload) workload="${2:?}"; shift 2 ;;
    --tpu-type) tpu_type="${2:?}"; shift 2 ;;
    --) shift; break ;;
    *) usage ;;
  esac
done
[[ -n $cluster && -n $workload && -n $tpu_type && $# -gt 0 ]] || usage

exec xpk workload create \
  --cluster "$cluster" --workload "$workload" --tpu-type "$tpu_type" --num-slices 1 \
  --base-docker-image "${IMAGE:-python:3.12}" --script-dir . \
  --command "pip install --quiet '.[tpu]' && MMEUREKA_DISTRIBUTED=1 mmeureka train $(printf '%q ' "$@")"
