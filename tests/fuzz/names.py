"""Names, attributes, links and the text of maps: all of it may end while it is asked for."""

import errno
import os
import time
from contextlib import suppress

import attrs

from fuzz.room import GOING, Room

_ATTRIBUTES = ("start", "end", "perms", "offset", "device", "inode", "path", "rss", "swap", "flags")


@attrs.frozen
class Names:
    """One reader's questions about names."""

    room: Room

    def list_names(self) -> None:
        """List a directory of a process, and look at some of what is in it."""
        pid = self.room.choose()
        if pid is None:
            return
        where = self.room.random.choice(("", "vmas", "snapshots"))
        path = self.room.mount / str(pid) / where
        with suppress(OSError):
            with self.room.asking(f"list {path}"):
                names = os.listdir(path)
            if len(set(names)) != len(names):
                self.room.find("listing", path=str(path), names=names)
            for name in self.room.random.sample(names, min(len(names), 6)):
                with suppress(OSError), self.room.asking(f"stat {path}/{name}"):
                    os.lstat(path / name)

    def ask_attributes(self) -> None:
        """Ask for extended attributes of a mapping."""
        pid = self.room.choose()
        if pid is None:
            return
        vmas = self.room.mount / str(pid) / "vmas"
        with suppress(OSError):
            with self.room.asking(f"list {vmas}"):
                path = vmas / self.room.random.choice(os.listdir(vmas))
            with self.room.asking(f"listxattr {path}"):
                os.listxattr(path)
            for name in self.room.random.sample(_ATTRIBUTES, 3):
                with suppress(OSError), self.room.asking(f"getxattr {path} {name}", GOING | {errno.ENODATA}):
                    os.getxattr(path, f"user.memfs.{name}")

    def read_text(self) -> None:
        """Read maps and the links."""
        pid = self.room.choose()
        if pid is None:
            return
        path = self.room.mount / str(pid) / "maps"
        with suppress(OSError), self.room.asking(f"maps {path}"):
            for line in path.read_bytes().splitlines():
                int(line.partition(b"-")[0], 16)
        for name in ("heap", "stack", "text"):
            with suppress(OSError), self.room.asking(f"readlink {pid}/{name}"):
                os.readlink(self.room.mount / str(pid) / name)

    def watch(self) -> None:
        """See whether the mount answers."""
        with suppress(OSError), self.room.asking("stat the mount"):
            os.stat(self.room.mount)
        with suppress(OSError), self.room.asking("list the mount"):
            os.listdir(self.room.mount)
        time.sleep(0.05)  # a pace, nothing waits for it
