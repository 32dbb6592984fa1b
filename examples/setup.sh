#!/bin/sh
# Makes .venv, with memfs in it, and installs the packages that this needs and that are missing.
# Usage: sh examples/setup.sh [run|test]
# With nothing missing it changes nothing and needs neither network nor root.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd -P)
purpose=${1:-run}
venv=$root/.venv
stamp=$venv/memfs-setup
python=/usr/bin/python3

# Every program the tests start: command:package.
test_tools='rsync:rsync getfattr:attr rg:ripgrep xxd:xxd zstd:zstd openssl:openssl tar:tar
findmnt:util-linux mount:mount hexdump:bsdextrautils ps:procps git:git gdb:gdb eu-readelf:elfutils
readelf:binutils redis-benchmark:redis-tools
socat:socat b3sum:b3sum curl:curl ip:iproute2 mkfs.xfs:xfsprogs mkfs.ext4:e2fsprogs strace:strace'

die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

say() {
    printf '== %s\n' "$*"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# python3-dev matches the distribution's own python3, so that one comes first.
choose_python() {
    for candidate in /usr/bin/python3 "${PYTHON:-python3}"; do
        if new_enough "$candidate"; then
            python=$candidate
            return
        fi
    done
    if found=$(python3 -V 2>/dev/null); then
        die "$found is too old: memfs needs Python 3.11 (Debian 12, Ubuntu 24.04) or newer; PYTHON=/path/to/python3 names another"
    fi
}

need() {
    package=$1
    shift
    "$@" >/dev/null 2>&1 || echo "$package"
}

has_libc_headers() {
    echo '#include <stdlib.h>' | gcc -E -
}

# The tests have programs for i386, which an x86-64 kernel runs.
has_32_bit_compiler() {
    test "$(uname -m)" != x86_64 || echo '#include <stdlib.h>' | gcc -m32 -E -
}

has_python_headers() {
    test -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"
}

has_openbsd_nc() {
    nc -h 2>&1 | grep OpenBSD
}

missing_packages() {
    need gcc command -v gcc
    need libc6-dev has_libc_headers
    need pkg-config command -v pkg-config
    need libfuse3-dev pkg-config --exists fuse3
    need fuse3 command -v fusermount3
    need python3 new_enough "$python"
    need python3-dev has_python_headers
    need python3-venv "$python" -c 'import ensurepip, venv'
    [ "$purpose" = test ] || return 0
    need netcat-openbsd has_openbsd_nc
    need gcc-multilib has_32_bit_compiler
    for tool in $test_tools; do
        need "${tool#*:}" command -v "${tool%%:*}"
    done
}

# Says what failed in a few lines, however much apt-get has to say.
apt_get() {
    output=$(as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" 2>&1 </dev/null) &&
        return
    printf '%s\n' "$output" | grep '^E:' | tail -n 3 >&2
    return 1
}

install_packages() {
    packages=$(missing_packages | paste -s -d ' ' -)
    [ -n "$packages" ] || return 0
    command -v apt-get >/dev/null ||
        die "missing: $packages (Debian's names); there is no apt-get here, so install their like and run this again"
    [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null ||
        die "missing: $packages; installing them needs root or sudo"

    say "installing $packages"
    # One unreachable source does not matter, if the others have the packages.
    apt_get update || :
    # pip needs certificates for https.
    # shellcheck disable=SC2086  # one word for each package
    apt_get install -y --no-install-recommends ca-certificates $packages ||
        die "apt-get could not install $packages; is there a network?"

    choose_python
    packages=$(missing_packages | paste -s -d ' ' -)
    [ -z "$packages" ] || die "still missing after the installation: $packages"
}

# fusermount3 unmounts what /etc/mtab names. systemd makes that link at boot; a bare debootstrap has none.
make_mtab() {
    [ -e /etc/mtab ] || as_root ln -s ../proc/self/mounts /etc/mtab ||
        die "cannot make /etc/mtab; as root: ln -s ../proc/self/mounts /etc/mtab"
}

newer_than_stamp() {
    [ -n "$(find "$@" -name __pycache__ -prune -o -newer "$stamp" -type f -print)" ]
}

# A virtual environment works where it was made, with the Python it was made by.
venv_identity() {
    "$venv/bin/python" -c 'import pip, sys; print(sys.prefix, *sys.version_info[:2])' 2>/dev/null
}

make_venv() {
    state=$(cat "$stamp" 2>/dev/null) || state=
    identity=$(venv_identity) || identity=
    if [ -z "$identity" ]; then
        state=
    elif [ -n "$state" ] && { [ "${state#* }" != "$identity" ] || newer_than_stamp pyproject.toml; }; then
        identity=
        # Who set it up for the tests shall not find them gone.
        case $state in test*) purpose=test ;; esac
    fi
    if [ -z "$identity" ]; then
        state=
        say "making .venv with $("$python" -V)"
        "$python" -m venv --clear "$venv" || die "cannot make $venv; the message is above"
        identity=$(venv_identity) || die "$venv does not work"
    fi

    case $purpose:$state in
        *:test*) return ;;
        run:run*) newer_than_stamp memfs || return 0 ;;
    esac
    say "installing memfs into .venv (building pyfuse3 takes half a minute)"
    case $purpose in
        run) pip_install . ;;
        test) pip_install -e '.[test]' ;;
    esac
    echo "$purpose $identity" >"$stamp"
}

pip_install() {
    "$venv/bin/python" -m pip install --quiet "$@" ||
        die "pip install failed; its message is above (is there a network?)"
}

case $purpose in
    run | test) ;;
    *) die "usage: sh examples/setup.sh [run|test]" ;;
esac
cd "$root"
[ -c /dev/fuse ] || die "no /dev/fuse: run 'modprobe fuse', or start the container with --device /dev/fuse --cap-add SYS_ADMIN"
choose_python
install_packages
make_mtab
make_venv
