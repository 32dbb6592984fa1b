#!/bin/sh
# Copies the memory of a redis-server under load to another host, by rounds of what changed, and shows the
# bytes that each round sends. The hosts are two network namespaces. Needs root, /dev/fuse, redis-tools,
# iproute2, and some 500 MiB of memory. No service is started, and nothing is left.
set -eu

cd "$(dirname "$0")/.."
memfs=$PWD/.venv/bin/memfs
python=$PWD/.venv/bin/python
work=$(mktemp -d /dev/shm/memfs-warm.XXXXXX)
here=memfs-warm-a-$$
there=memfs-warm-b-$$
server=
load=
receiver=

clean_up() {
    trap '' INT TERM HUP
    for pid in $load $receiver $server; do
        kill "$pid" 2>/dev/null || :
        wait "$pid" 2>/dev/null || :
    done
    if grep -qF "$work/mnt " /proc/self/mountinfo; then
        "$memfs" umount "$work/mnt" || umount --lazy "$work/mnt"
    fi
    ip netns del "$here" 2>/dev/null || :
    ip netns del "$there" 2>/dev/null || :
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

on() {
    ip netns exec "$@"
}

await_port() {
    until on "$1" grep -q ":$(printf %04X "$2") 00000000:0000 0A" /proc/net/tcp /proc/net/tcp6; do :; done
}

ip netns add "$here"
ip netns add "$there"
ip -n "$here" link add wire type veth peer name wire netns "$there"
ip -n "$here" addr add 10.78.0.1/24 dev wire
ip -n "$there" addr add 10.78.0.2/24 dev wire
for host in "$here" "$there"; do
    ip -n "$host" link set lo up
    ip -n "$host" link set wire up
done

mkdir "$work/mnt"
"$memfs" mount -o "log=$work/log" "$work/mnt"

# redis-check-rdb is the server too, under the server's name.
ln -s "$(command -v redis-check-rdb)" "$work/redis-server"
ip netns exec "$here" "$work/redis-server" --port 6379 --save '' --appendonly no --dir "$work" >/dev/null &
server=$!
await_port "$here" 6379
on "$here" redis-benchmark -q -P 32 -t set -n 200000 -r 200000 -d 1000 >/dev/null
echo "redis-server holds $(($(awk '/VmRSS/ { print $2 }' "/proc/$server/status") >> 10)) MiB"

ip netns exec "$here" redis-benchmark -q -c 1 -t set -n 100000000 -r 2000 -d 1000 >/dev/null &
load=$!

ip netns exec "$there" "$python" examples/warm_copy.py receive 7000 "$work/image" &
receiver=$!
await_port "$there" 7000
on "$here" "$python" examples/warm_copy.py send "$work/mnt/$server" 10.78.0.2 7000 | tee "$work/rounds"
wait "$receiver"
receiver=
"$python" examples/warm_copy.py check "$(sed -n 's/^the image is //p' "$work/rounds")" "$work/image"
