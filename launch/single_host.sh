#!/usr/bin/env bash
# One process on all accelerators of this machine (one process drives all local GPUs or TPU chips).
#   launch/single_host.sh configs/cpgd_qwen_7b.yaml run_dir=runs/cpgd
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ $# -gt 0 ]] || { sed -n '2,3s/^# *//p' "$0"; exit 2; }
[[ -x .venv/bin/mmeureka ]] && PATH="$PWD/.venv/bin:$PATH"

# JAX keeps this share of each GPU's memory for itself; the rest is for NCCL and cuDNN.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"

python3 -c 'import jax; print("devices:", *jax.devices())'
exec mmeureka train "$@"
