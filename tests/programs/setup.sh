#!/bin/sh
# Installs the programs that tests/programs looks at, from Debian's packages (1.5 GB).
# Usage: sh tests/programs/setup.sh
# What cannot be installed is said, and its tests are skipped.
set -eu

if [ "$(id -u)" -ne 0 ]; then
    exec sudo sh "$0"
fi

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
for package in nodejs default-jdk-headless qemu-system-x86 postgresql redis-server redis-tools nginx-light \
    apache2-utils golang-go delve chromium python3-numpy valgrind gcc-multilib gdb elfutils; do
    apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=600 "$package" >/dev/null ||
        printf 'setup.sh: %s cannot be installed: its tests will be skipped\n' "$package" >&2
done
