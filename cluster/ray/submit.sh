#!/usr/bin/env bash
# Submit a run to a Ray cluster and follow it; the exit status is the job's.
#   cluster/ray/submit.sh http://HEAD:8265 CONFIG RUN_FOLDER [key=value…]
# RUN_FOLDER is seen by all nodes under this path. The same command again goes on where the run was stopped.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '3,4s/^# *//p' "$0" >&2; exit 2; }
address=$1 config=$2 folder=$3
shift 3
[ -n "${RAY_AUTH_MODE:-}" ] || { [ -f ~/.ray/auth_token ] && export RAY_AUTH_MODE=token; } || true
exec ray job submit --address "$address" -- selfloop run "$config" --run-dir "$folder" "$@"
