#!/usr/bin/env bash
# One process on all accelerators of this machine (one process drives all local GPUs or TPU chips).
#   launch/single_host.sh [--dry-run] CONFIG [overrides]
#   launch/single_host.sh configs/cpgd_qwen_7b.yaml run_dir=runs/cpgd
# --dry-run prints the command. SIGTERM ends the run with a checkpoint, and the same command resumes it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

case "${1:-}" in
  --help) usage; exit ;;
  --dry-run) dry_run=yes; shift ;;
esac
[[ $# -gt 0 ]] || wrong "a CONFIG is missing"
[[ ! -x .venv/bin/mmeureka ]] || PATH="$PWD/.venv/bin:$PATH"

# JAX keeps this share of each GPU's memory for itself; the rest is for NCCL and cuDNN.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"

[[ -n $dry_run ]] || exec mmeureka train "$@"
run mmeureka train "$@"
