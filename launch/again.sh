#!/usr/bin/env bash
# Runs a command, and runs it again where a process of the run was lost: another one (exit code 75), or this one, killed (134,
# 137, 139). The same command resumes the run.
#   launch/again.sh COMMAND [arguments]
# In the environment: RESTARTS, how often at most (10); PAUSE, seconds before each (30).
# SIGTERM, and Ctrl-C as SIGTERM, go to the command, and nothing is started after them.
set -uo pipefail
[[ $# -gt 0 && $1 != --help ]] || { sed -nE '2,/^[^#]/s/^#( |$)//p' "$0"; exit 2; }

child="" stopped=""
stop() {
  stopped=yes
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT # a shell without job control lets its children ignore SIGINT

# Runs a command to its end, whatever signals come, and sets `code` to its exit code.
follow() {
  local last
  "$@" &
  child=$!
  [[ -z $stopped ]] || stop # it came just before
  wait "$child"
  code=$?
  [[ -n $stopped ]] || return
  # A trap ends `wait` early. Another tells the command's own exit code, or 127 where the first did.
  while wait "$child"; last=$?; [[ $last -ne 127 ]]; do
    code=$last
    kill -0 "$child" 2>/dev/null || return
  done
}

for ((restart = 0; ; restart++)); do
  follow "$@"
  if [[ -n $stopped || ! $code =~ ^(75|134|137|139)$ ]]; then
    echo "again.sh: ended with exit code $code" >&2
    exit "$code"
  fi
  if [[ $restart -ge ${RESTARTS:-10} ]]; then
    echo "again.sh: exit code $code after $restart restarts; not again" >&2
    exit "$code"
  fi
  child=""
  echo "again.sh: exit code $code; restart $((restart + 1)) of ${RESTARTS:-10} in ${PAUSE:-30} s" >&2
  follow sleep "${PAUSE:-30}"
  [[ -z $stopped ]] || exit 143
done
