#!/bin/sh
# Sets memfs up and runs every check. Usage: sh tests/run.sh [PYTEST-ARGUMENT...]
# Needs root or sudo, /dev/fuse, and a network for the first run.
set -eu

cd "$(dirname "$0")/.."

check() {
    printf '\n== %s\n' "$*"
    "$@" || fail "$?" "$*"
}

fail() {
    printf 'tests/run.sh: failed with status %s: %s\n' "$1" "$2" >&2
    exit "$1"
}

sh examples/setup.sh test
PATH=$(pwd -P)/.venv/bin:$PATH
export PATH

check ruff check
check ruff format --check
check mypy
check lint-imports
# The tests mount as root and as a second user; bytecode written by root would be in its owner's way.
if [ "$(id -u)" -eq 0 ]; then
    check pytest "$@"
else
    check sudo env PATH="$PATH" PYTHONDONTWRITEBYTECODE=1 pytest "$@"
fi

echo "tests/run.sh: every check passed"
