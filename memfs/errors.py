"""What can go wrong, as values: an errno for programs, a sentence for people, a hint that mends it.

Everything below the mount raises :class:`OSError` or :class:`MemfsError`.
:func:`errno_of` is the one place that turns either into the number a reader sees.
"""

import errno
from typing import ClassVar

import attrs


@attrs.frozen
class MemfsError(Exception):
    """A failure that a user can be told about in one sentence.

    Attributes:
        sentence: what happened, without a full stop at the end.
        hint: what to do about it; empty where there is nothing to do.
    """

    number: ClassVar[int] = errno.EIO
    sentence: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.sentence}: {self.hint}" if self.hint else self.sentence


class NoSuchEntry(MemfsError):
    """A name, a process or a mapping that is not there (any more)."""

    number = errno.ENOENT


class TargetExited(MemfsError):
    """The process whose memory is open has ended."""

    number = errno.ESRCH


class TargetReplaced(MemfsError):
    """The process has exec'ed another program since its memory was opened."""

    number = errno.ESTALE


class RangeUnmapped(MemfsError):
    """The bytes asked for are not mapped, or no one can read them."""

    number = errno.EIO


class NoAnswer(RangeUnmapped):
    """The server of a mapped file does not answer: to ask it again would be to wait again."""


class AccessDenied(MemfsError):
    """The kernel's ptrace access check refused us."""

    number = errno.EACCES


class TargetBusy(MemfsError):
    """The process cannot be stopped now: someone else traces it, or it does not come out of the kernel."""

    number = errno.EBUSY


class TargetStuck(TargetBusy):
    """The same, for a reason that is likely to pass in a moment."""


class NameTaken(MemfsError):
    """There is a snapshot of that name already."""

    number = errno.EEXIST


class NoRoom(MemfsError):
    """Memory that is swapped out cannot be read: it would stay in memory, and there is no room for it."""

    number = errno.ENOMEM


class TooMany(MemfsError):
    """A limit on snapshots is reached."""

    number = errno.ENOSPC


@attrs.frozen
class CannotFreeze(MemfsError):
    """The kernel would not make a frozen copy of a process; *cause* is its errno."""

    cause: int = errno.EIO


class BadOption(MemfsError):
    """An option that is unknown, or cannot be meant as it stands."""

    number = errno.EINVAL


class CannotMount(MemfsError):
    """A mount point that cannot be used, or something that mounting needs is missing."""

    number = errno.EINVAL


class CannotCopy(MemfsError):
    """An image that cannot be copied out, or not as it was asked for."""


def errno_of(error: BaseException) -> int:
    """The errno that *error* stands for; EIO where it says nothing better."""
    if isinstance(error, CannotFreeze):
        return error.cause
    if isinstance(error, MemfsError):
        return error.number
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EIO
