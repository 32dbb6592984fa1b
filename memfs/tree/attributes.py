"""What stat(2) tells of things in the tree, as values."""

import stat as stat_module
import time

import attrs

from memfs.tree.nodes import Name, Node, ProcessNode

DIRECTORY = stat_module.S_IFDIR | 0o500
OPEN_DIRECTORY = stat_module.S_IFDIR | 0o555
SNAPSHOT_DIRECTORY = stat_module.S_IFDIR | 0o700
FILE = stat_module.S_IFREG | 0o400
LINK = stat_module.S_IFLNK | 0o777

_BLOCK_BYTES = 512
_NAME_TIMEOUT_S = 0.5
_PID_TIMEOUT_S = 0.1


@attrs.frozen
class Attributes:
    """What stat(2) tells of a node.

    Attributes:
        mtime_ns: of a live file now, since live memory changes all the time; of a snapshot's when its
            content last changed, as far as is known; else as ctime.
        ctime_ns: when the process began, or the snapshot was taken. It must not move: tar takes a file
            whose ctime moves for one that was changed while it was read.
        name_timeout_s: how long the kernel may believe that the name still stands for this node.
        settled: whether the size is known and stays; else the kernel is to ask again each time.
    """

    number: int
    mode: int
    uid: int
    gid: int
    size_bytes: int
    blocks: int
    mtime_ns: int
    ctime_ns: int
    name_timeout_s: float
    settled: bool


@attrs.frozen
class Entry:
    """A name in a directory, and what it stands for."""

    name: bytes
    node: Node
    attributes: Attributes


@attrs.frozen
class Ownership:
    """What all the files of a process or a snapshot have in common, and how much memory it holds.

    Attributes:
        live: whether what the files show changes all the time.
    """

    uid: int
    gid: int
    ctime_ns: int
    held_bytes: int
    live: bool


def describe_node(
    number: int,
    node: Node,
    mode: int,
    ownership: Ownership,
    *,
    size_bytes: int = 0,
    held_bytes: int = 0,
    mtime_ns: int | None = None,
    settled: bool = True,
) -> Attributes:
    """The attributes of *node*, which has the inode number *number*.

    *mtime_ns* is when its content last changed, where that is known; *settled*: whether its size is.
    """
    if mtime_ns is None:
        mtime_ns = time.time_ns() if ownership.live and stat_module.S_ISREG(mode) else ownership.ctime_ns
    is_pid = isinstance(node, ProcessNode) and node.name is Name.PROCESS
    timeout_s = _PID_TIMEOUT_S if is_pid else _NAME_TIMEOUT_S
    return Attributes(
        number=number,
        mode=mode,
        uid=ownership.uid,
        gid=ownership.gid,
        size_bytes=size_bytes,
        blocks=-(-held_bytes // _BLOCK_BYTES),
        mtime_ns=mtime_ns,
        ctime_ns=ownership.ctime_ns,
        name_timeout_s=timeout_s if settled else 0,
        settled=settled,
    )
