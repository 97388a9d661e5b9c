# shellcheck shell=bash
# What the scripts for starting a run share. They are used on laptops too, so bash 3.2 has to do: it takes an empty array for
# an unset one, hence ${x[@]+"${x[@]}"}.

# Variables of this shell that a run on other machines gets where they are set, next to those that --env names.
passed_on="HF_TOKEN HF_HOME HF_HUB_OFFLINE WANDB_API_KEY WANDB_MODE WANDB_PROJECT LIBTPU_INIT_ARGS XLA_FLAGS"
dry_run=""

# The comment at the head of the script.
usage() { sed -nE '2,/^(#SBATCH|[^#])/s/^#( |$)//p' "$0"; }

wrong() {
  echo "$(basename "$0"): $1 (--help says more)" >&2
  exit 2
}

# Arguments for another shell to read.
quoted() { printf '%q ' "$@"; }

# In a dry run prints the command, as one could type it.
run() {
  local argument
  [[ -n $dry_run ]] || { "$@"; return; }
  printf '+'
  for argument in "$@"; do
    case "$argument" in
      "" | *[!A-Za-z0-9_./:=,@%+-]*) printf " '%s'" "$(printf %s "$argument" | sed "s/'/'\\\\''/g")" ;;
      *) printf ' %s' "$argument" ;;
    esac
  done
  echo
}

# --env NAME
pass_on() {
  [[ $1 =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || wrong "--env takes the name of a variable, without its value"
  [[ -n ${!1:-} ]] || wrong "--env $1: the variable is not set here"
  passed_on="$passed_on $1"
}

# The names of `passed_on` that are set here.
names_to_pass() {
  local name
  for name in $passed_on; do [[ -z ${!name:-} ]] || echo "$name"; done
}

# Where compiled programs are kept, so that a restarted run and all its processes find them: JAX_COMPILATION_CACHE_DIR, or next to
# run_dir. Ends the script unless the overrides name a run_dir that machines can share.
shared_cache() {
  local argument run_dir=""
  for argument in "$@"; do case "$argument" in run_dir=*) run_dir="${argument#run_dir=}" ;; esac; done
  case "$run_dir" in
    *://*) wrong "run_dir=$run_dir: a run needs a folder, on a disk that all machines mount (NFS, Filestore)" ;;
    /*) ;;
    *) wrong "run_dir=/FOLDER is missing among the overrides: all machines write there, so it lies on a disk that they share" ;;
  esac
  echo "${JAX_COMPILATION_CACHE_DIR:-$(dirname "$run_dir")/xla_cache}"
}
