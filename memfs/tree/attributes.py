"""What stat(2) tells of things in the tree, as values."""

import stat as stat_module

import attrs

from memfs.tree.nodes import Node

DIRECTORY = stat_module.S_IFDIR | 0o500
OPEN_DIRECTORY = stat_module.S_IFDIR | 0o555
SNAPSHOT_DIRECTORY = stat_module.S_IFDIR | 0o700
FILE = stat_module.S_IFREG | 0o400
LINK = stat_module.S_IFLNK | 0o777


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
