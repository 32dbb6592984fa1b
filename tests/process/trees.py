"""A tree without a mount, for tests that take no snapshots."""

from typing import NoReturn

from memfs.snapshot.registry import Snapshots
from memfs.tree.tree import Tree


def plain_tree() -> Tree:
    """The tree of all processes; taking a snapshot is an error of the test."""
    return Tree(Snapshots(_refuse, copy_bytes=0, fall_back=False))


def _refuse() -> NoReturn:
    raise AssertionError("a snapshot was asked for")
