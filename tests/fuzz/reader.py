"""A reader of the mount: random questions as root, each answer held against /proc/PID/mem.

    reader.py DIRECTORY MOUNTPOINT NUMBER SEED

Before an operation it writes what it does into its heartbeat, so that who watches sees one that does not
end. It works until its stdin ends; then it closes all it has open, and writes its counts into
``reader-NUMBER.json`` of the directory. What it finds goes to ``findings-NUMBER`` at once, as lines of JSON.
"""

import ctypes
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from fuzz.frozen import Copies, Cores, Snapshots
from fuzz.live import LiveFiles
from fuzz.moment import Judge
from fuzz.names import Names
from fuzz.room import Interrupted, Room

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_PAUSE_SECONDS = 0.002


def read(room: Room) -> None:
    """Ask until stdin ends; the first reader only looks whether the mount answers."""
    live, names, judge = LiveFiles(room), Names(room), Judge(room)
    snapshots, cores = Snapshots(room, judge), Cores(room, judge)
    copies = Copies(room, snapshots)
    work: dict[Callable[[], None], int] = {
        live.open: 12,
        live.read: 40,
        live.follow: 4,
        live.pursue: 6,
        live.close_one: 3,
        live.seek: 5,
        names.list_names: 4,
        names.ask_attributes: 3,
        names.read_text: 2,
        snapshots.freeze: 5,
        snapshots.read: 5,
        snapshots.let_go: 3,
        cores.read_core: 4,
        cores.hammer: 3,
        copies.copy: 1,
    }
    if room.number == 0:
        work = {names.watch: 1}
    actions, weights = list(work), list(work.values())
    while not select.select([0], [], [], _PAUSE_SECONDS)[0]:
        _do(room, room.random.choices(actions, weights)[0])
    live.close()
    while snapshots.held:
        _do(room, snapshots.let_go)


def _do(room: Room, action: Callable[[], None]) -> None:
    name = action.__qualname__
    room.counts[name] += 1
    try:
        action()
    except Interrupted:
        room.counts[f"{name}: given up"] += 1
    finally:
        room.be_idle()


def _interrupt(*_: object) -> None:
    raise Interrupted


def main() -> None:
    """Read until stdin ends."""
    directory, mount, number, seed = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGALRM, _interrupt)
    room = Room(Path(directory), Path(mount), int(number), int(seed))
    read(room)
    room.close()


if __name__ == "__main__":
    main()
