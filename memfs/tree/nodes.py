"""What there is in the tree, as values: each node says whose it is, and what it is of that."""

import enum

import attrs

from memfs.snapshot.snapshot import SnapshotId
from memfs.target.identity import Identity


class Name(enum.IntEnum):
    """What has one place in its directory; the value is part of its inode number."""

    ROOT = 1
    BY_NAME = 2
    SELF = 3
    PROCESS = 4
    MEM = 5
    VMAS = 6
    MAPS = 7
    HEAP = 8
    STACK = 9
    TEXT = 10
    PROC = 11
    NAME_LINK = 12
    COMM = 13
    CORE = 14
    SNAPSHOTS = 15
    INFO = 16
    SINCE = 17


@attrs.frozen
class Fixed:
    """Something that the mount has once: the root, ``by-name``, ``self``."""

    name: Name


@attrs.frozen
class CommDir:
    """``by-name/COMM``."""

    comm: bytes


Owner = Identity | SnapshotId
"""Whose memory it is: a process that runs, or a frozen one."""


def identity_of(owner: Owner) -> Identity:
    """The process that it is, or was when it was frozen."""
    return owner.identity if isinstance(owner, SnapshotId) else owner


@attrs.frozen
class ProcessNode:
    """Something that a process has once, running or frozen."""

    owner: Owner
    name: Name


@attrs.frozen
class VmaNode:
    """The file of the VMA from address *start* to *end*.

    With other bounds it is another file: what the kernel keeps of a file, its size and cached pages,
    must never be shown for memory of another extent.
    """

    owner: Owner
    start: int
    end: int


@attrs.frozen
class SinceNode:
    """What changed in a snapshot since the earlier one of the same process that has the number *serial*."""

    owner: SnapshotId
    serial: int


Node = Fixed | CommDir | ProcessNode | VmaNode | SinceNode


def target_of(node: Node) -> Identity | None:
    """The process that *node* is about, running or frozen; None for one about none."""
    return identity_of(node.owner) if isinstance(node, ProcessNode | VmaNode | SinceNode) else None
