#!/usr/bin/env bash
# make check: format, lint, rooms, types, size budget, unit tests. Run with the environment's bin first in PATH.
#   tools/check.sh [--without-tests]
set -uo pipefail
cd "$(dirname "$0")/.."
status=0
step() { echo "== $1"; shift; "$@" || status=1; }

# Type checkers see modules under their import path: a tree of links named selfloop/ (build/types).
types() {
  rm -rf build/types && mkdir -p build/types/selfloop
  cp -rs "$PWD"/door/* "$PWD"/workflows "$PWD"/actors "$PWD"/configs build/types/selfloop/
  pyright --pythonpath "$(command -v python)" | sed "s#$PWD/build/types/selfloop/##"
}

report=$(mktemp)
trap 'rm -f "$report"' EXIT
types >"$report" 2>&1 & # beside the tests: it needs a core and most of a minute
checker=$!

step "format (ruff)" ruff format --check --quiet .
step "lint (ruff)" ruff check --quiet .
rooms() {
  local said
  said=$(lint-imports --no-logo --no-cache) || { echo "$said"; return 1; }
}
step "rooms (import-linter)" rooms
[ "${1:-}" = --without-tests ] || step "unit tests and size budget (pytest)" python -m pytest tests/unit -q -m "not real"
finish() { wait "$checker" || status=1; cat "$report"; }
step "types (pyright)" finish
exit $status
