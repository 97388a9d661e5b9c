#!/usr/bin/env bash
# Runs this checkout (what is committed) on every host of an existing TPU VM slice.
#   launch/tpu_vm.sh --name SLICE --zone ZONE [options] -- CONFIG run_dir=/SHARED/FOLDER [overrides]
#   launch/tpu_vm.sh --name SLICE --zone ZONE --follow | --stop
# Needs `gcloud` here, and on the hosts a disk that they share and a way to the network: uv fetches Python 3.12 and the packages.
# The run continues when this command or its connection ends. It starts again by itself where a process was lost; where a host was
# restarted, give the same command again: hosts on which it is still under way are left as they are.
#   --follow         show the log of the first host (~/mmeureka/log on each); with `--`, after starting
#   --stop           SIGTERM to the run: the step under way ends, and a checkpoint is written
#   --env NAME       hand on this variable too; HF_TOKEN, WANDB_API_KEY, LIBTPU_INIT_ARGS, XLA_FLAGS and a few more always are, in
#                    a file that only you can read
#   --project NAME   of Google Cloud
#   --dry-run        print what would be done, without the values of secrets
# Compiled programs are kept in JAX_COMPILATION_CACHE_DIR, or next to run_dir.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

name="" zone="" project=() follow="" stop=""
while [[ $# -gt 0 ]]; do
  case "$1" in --name | --zone | --project | --env) [[ $# -gt 1 ]] || wrong "$1 needs a value" ;; esac
  case "$1" in
    --help) usage; exit ;;
    --name) name="$2"; shift 2 ;;
    --zone) zone="$2"; shift 2 ;;
    --project) project=(--project "$2"); shift 2 ;;
    --env) pass_on "$2"; shift 2 ;;
    --follow) follow=yes; shift ;;
    --stop) stop=yes; shift ;;
    --dry-run) dry_run=yes; shift ;;
    --) shift; break ;;
    *) wrong "$1 is no option; CONFIG and overrides come after --" ;;
  esac
done
[[ -n $name && -n $zone ]] || wrong "--name SLICE and --zone ZONE are needed"
[[ $# -gt 0 || -n $follow || -n $stop ]] || wrong "-- CONFIG run_dir=/SHARED/FOLDER is missing"

tpu() { run gcloud compute tpus tpu-vm "$@" --zone "$zone" ${project[@]+"${project[@]}"}; }

# What a host needs to know: shell code that tpu_host.sh reads. A dry run hides what may be secret.
settings() {
  local variable value
  echo "export MMEUREKA_DISTRIBUTED=1 # on a TPU VM JAX finds the other hosts by itself"
  printf 'export JAX_COMPILATION_CACHE_DIR=%q\n' "$cache"
  for variable in $(names_to_pass); do
    value="${!variable}"
    case "$variable" in
      LIBTPU_INIT_ARGS | XLA_FLAGS) ;;
      *) [[ -z $dry_run ]] || value=HIDDEN ;;
    esac
    printf 'export %s=%q\n' "$variable" "$value"
  done
  echo "arguments=( $(quoted "$@"))"
}

if [[ -n $stop ]]; then
  tpu ssh "$name" --worker=all --command "bash mmeureka/code/launch/tpu_host.sh stop"
  exit
fi

if [[ $# -gt 0 ]]; then
  cache="$(shared_cache "$@")"
  git diff --quiet HEAD || echo "$(basename "$0"): changes that are not committed stay here" >&2
  umask 077
  folder="$(mktemp -d)"
  trap 'rm -rf "$folder"' EXIT
  settings "$@" >"$folder/settings"
  if [[ -n $dry_run ]]; then sed 's/^/settings: /' "$folder/settings"; fi
  git archive --format=tar --output="$folder/mmeureka.tar" HEAD
  tar -rf "$folder/mmeureka.tar" -C "$folder" settings
  tpu scp "$folder/mmeureka.tar" "$name:mmeureka.tar" --worker=all
  unpack="umask 077 && rm -rf mmeureka/new && mkdir -p mmeureka/new && tar -xf mmeureka.tar -C mmeureka/new && rm mmeureka.tar"
  tpu ssh "$name" --worker=all --command "$unpack && bash mmeureka/new/launch/tpu_host.sh prepare"
  tpu ssh "$name" --worker=all --command "bash mmeureka/code/launch/tpu_host.sh start"
fi
[[ -z $follow ]] || tpu ssh "$name" --worker=0 --command "tail -n 100 -F mmeureka/log"
