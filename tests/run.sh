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

# The tests mount as root and as a second user. Bytecode written by root would be in its owner's way.
pytest_as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        pytest "$@"
    else
        sudo env PATH="$PATH" PYTHONDONTWRITEBYTECODE=1 pytest "$@"
    fi
}

sh tools/setup.sh test
PATH=$(pwd -P)/.venv/bin:$PATH
export PATH

check ruff check
check ruff format --check
check mypy
check lint-imports
check pytest_as_root "$@"

echo "tests/run.sh: every check passed"
