#!/usr/bin/env bash
# Sets up .venv with the CPU or the GPU stack. Immediate when nothing that matters has changed.
#   tools/setup.sh [cpu|gpu]        default: the stack that is there, else gpu where there is an NVIDIA GPU, else cpu
# PYTHON=… names the interpreter, VENV=… the folder.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
STACK=${1:-$(cat "$VENV/.selfloop-stack" 2>/dev/null || true)}
MIN_GIB_cpu=6
MIN_GIB_gpu=20

fail() { printf 'Set-up failed: %s\n' "$1" >&2; exit 1; }

if [ -z "$STACK" ]; then
  if { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; } || [ -e /dev/nvidia0 ]; then STACK=gpu; else STACK=cpu; fi
fi
case "$STACK" in cpu | gpu) ;; *) fail "STACK is '$STACK', and must be cpu or gpu." ;; esac

# What the environment depends on. The editable install links single files, so the list of files counts too.
key() {
  { echo "$STACK $PWD"
    cat pyproject.toml tools/setup.sh constraints/*.txt
    find door workflows actors configs -type f ! -name '*.pyc' | LC_ALL=C sort; } | sha256sum | cut -d' ' -f1
}
KEY=$(key)
ready() { [ -x "$VENV/bin/selfloop" ] && [ "$(cat "$VENV/.selfloop-key" 2>/dev/null)" = "$KEY" ]; }
ready && exit 0

mkdir -p "$VENV" || fail "$PWD cannot be written. Clone into a folder of your own."
exec 9>"$VENV/.selfloop-lock"
command -v flock >/dev/null && flock 9 # two makes at once: the second waits, then finds it done
ready && exit 0

usable() { command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; }
find_python() {
  for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.13}; do
    if usable "$candidate"; then echo "$candidate"; return; fi
  done
  found=$({ ${PYTHON:-python3} --version || echo 'no Python'; } 2>&1 | tail -n 1)
  fail "Python 3.11, 3.12 or 3.13 is needed, and this machine has $found. Install one (sudo apt-get install python3 python3-pip on a recent Debian or Ubuntu), or name one: make setup PYTHON=/path/to/python3.12"
}
PY=$(find_python) || exit 1

compiler() { for name in ${CXX:-c++ g++ clang++}; do command -v "$name" >/dev/null && return 0; done; return 1; }
compiler || fail "no C++ compiler was found, and DeepSpeed builds a small extension. Install one: sudo apt-get install g++"
"$PY" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
  echo "Note: Python.h is missing; if DeepSpeed cannot build its extension, run: sudo apt-get install python3-dev" >&2

limit="MIN_GIB_$STACK"
if [ ! -x "$VENV/bin/selfloop" ]; then
  free=$(($(df -Pk "$VENV" | awk 'NR == 2 {print $4}') / 1048576))
  [ "$free" -ge "${!limit}" ] || fail "the $STACK stack needs about ${!limit} GiB of disk, and $PWD has $free GiB free. Free some space, or clone elsewhere."
fi

echo "Setting up $VENV with the $STACK stack ($("$PY" --version), $(command -v "$PY")); the log is $VENV/setup.log"
LOG="$VENV/setup.log"
: >"$LOG"

explain() { # what went wrong, from the log
  if grep -qiE 'no space left' "$LOG"; then fail "the disk is full ($PWD). Free about ${!limit} GiB and try again."; fi
  if grep -qiE 'dns error|name resolution|failed to resolve|connection (refused|reset|error)|timed out|unreachable|error sending request|could not connect|NewConnectionError|failed to fetch' "$LOG"; then
    fail "packages could not be fetched: no network, or its package index does not answer. Check the connection (or pip's configuration) and try again; the log is $LOG."
  fi
  tail -n 15 "$LOG" >&2
  fail "$1 The log is $LOG."
}

if ! usable "$VENV/bin/python"; then
  "$PY" -m venv --clear --without-pip "$VENV" >>"$LOG" 2>&1 || explain "the virtual environment could not be made."
  mkdir -p "$VENV" && exec 9>"$VENV/.selfloop-lock" && : >>"$LOG"
fi

# pip's own configuration (a mirror, a folder of wheels, a certificate) is handed to uv, which does not read it.
pip_setting() { "$PY" -m pip config get "global.$1" 2>/dev/null || true; }
links=${PIP_FIND_LINKS:-$(pip_setting find-links)}
mirror=${PIP_INDEX_URL:-$(pip_setting index-url)}
cert=${PIP_CERT:-$(pip_setting cert)}
if [ -n "$links" ] && [ -z "${UV_FIND_LINKS:-}" ]; then export UV_FIND_LINKS="${links// /,}"; fi
if [ -n "$mirror" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX="$mirror"; fi
if [ -n "$cert" ] && [ -z "${SSL_CERT_FILE:-}" ]; then export SSL_CERT_FILE="$cert"; fi
export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180}

if [ ! -x "$VENV/bin/uv" ]; then
  "$PY" -m pip --version >>"$LOG" 2>&1 || fail "pip is missing. Install it: sudo apt-get install python3-pip"
  "$PY" -m pip --python "$VENV/bin/python" install --quiet --disable-pip-version-check uv >>"$LOG" 2>&1 ||
    { "$VENV/bin/python" -m ensurepip && "$VENV/bin/python" -m pip install --quiet uv; } >>"$LOG" 2>&1 ||
    explain "uv could not be installed."
fi

torch=()
if [ "$STACK" = cpu ]; then
  torch=(--overrides constraints/overrides-cpu.txt --constraints constraints/cpu.txt)
  tag=$("$VENV/bin/python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
  compgen -G "${links:-/nowhere}/torch-*cpu-$tag-*" >/dev/null || torch+=(--torch-backend cpu)
fi
"$VENV/bin/uv" pip install --python "$VENV/bin/python" "${torch[@]}" --reinstall-package selfloop \
  --config-settings editable_mode=strict --editable ".[$STACK,dev,math]" 2>&1 | tee -a "$LOG" | { grep -vE '^ [+~-] ' || true; } ||
  explain "the packages could not be installed."

echo "$STACK" >"$VENV/.selfloop-stack"
echo "$KEY" >"$VENV/.selfloop-key"
echo "Ready: $VENV/bin/selfloop --help"
