#!/bin/sh
# Sets memfs up, mounts it, copies the heap of a running program and checks the copy.
# Needs root or sudo, /dev/fuse, a network for the first run, and 300 MiB in ${TMPDIR:-/tmp}.
set -eu

# The copy is bytes, not text, to grep.
export LC_ALL=C
cd "$(dirname "$0")/.."
memfs=.venv/bin/memfs
python=.venv/bin/python
sudo=
work=
pid=

die() {
    printf 'quickstart: %s\n' "$*" >&2
    exit 1
}

show() {
    printf '\n$ %s\n' "$*"
}

run() {
    show "$@"
    "$@" || die "failed with status $?: $*"
}

mounted() {
    grep -qF "/${work##*/}/mnt " /proc/self/mountinfo
}

unmount_by_force() {
    $sudo "$memfs" umount "$work/mnt" || :
    if mounted; then
        $sudo umount --lazy "$work/mnt" || fusermount3 -u -z "$work/mnt" || :
    fi
}

clean_up() {
    trap '' INT TERM HUP
    if [ -n "$pid" ]; then
        kill "$pid" 2>/dev/null || :
        wait "$pid" 2>/dev/null || :
    fi
    [ -n "$work" ] || return 0
    $sudo rm -f "$work/heap.copy"
    rm -f "$work/ready"
    remove_mountpoint
    rmdir "$work"
}

# memfs mount, when interrupted, may leave a daemon that mounts a moment later, and then ends.
remove_mountpoint() {
    for _ in 1 2 3 4 5; do
        if mounted; then
            unmount_by_force
        fi
        if [ ! -d "$work/mnt" ] || rmdir "$work/mnt"; then
            return
        fi
        sleep 1
    done
}

trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

sh examples/setup.sh run

# Reading other processes takes root; what root mounts, root reads.
if [ "$(id -u)" -ne 0 ] && command -v sudo >/dev/null; then
    sudo=sudo
fi
work=$(mktemp -d "${TMPDIR:-/tmp}/memfs-quickstart.XXXXXX")
mkdir "$work/mnt"
mkfifo "$work/ready"

run $sudo "$memfs" mount "$work/mnt"
run findmnt "$work/mnt"

text=held-in-memory-only-since-$(date +%H:%M:%S)
show "$python" examples/hold_memory.py "$text" '&'
"$python" examples/hold_memory.py "$text" >"$work/ready" &
pid=$!
read -r answer <"$work/ready" || die "hold_memory.py ended early"
echo "$answer"

run $sudo ls -l "$work/mnt/$pid"
run $sudo cp "$work/mnt/$pid/heap" "$work/heap.copy"
run $sudo du -h "$work/heap.copy"

echo
echo "# The text is in the copy; here is its first place, as byte:text."
run $sudo grep -a -b -o -m 1 "$text" "$work/heap.copy"

# The file that heap leads to has its address range for a name: START-END_PERMS_heap.
range=$($sudo readlink "$work/mnt/$pid/heap")
range=${range##*/}
start=0x${range%%-*}
range=${range#*-}
size=$((0x${range%%_*} - start))
[ "$size" -ge $((256 << 20)) ] || die "the heap has only $size bytes"

echo
echo "# The same bytes, as /proc/$pid/mem gives them: cmp is silent when nothing differs."
run $sudo cmp --ignore-initial="$start:0" --bytes="$size" "/proc/$pid/mem" "$work/heap.copy"
[ "$($sudo stat -c %s "$work/heap.copy")" -eq "$size" ] || die "the copy is not $size bytes long"

run $sudo "$memfs" umount "$work/mnt"
if mounted; then
    die "memfs umount left the mount"
fi

echo
echo "quickstart passed: $((size >> 20)) MiB of heap copied, the text found, every byte the same, nothing left mounted"
