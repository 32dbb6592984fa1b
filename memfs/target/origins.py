"""What the objects are that a process maps: facts of the kernel, never the text of a path.

Whoever has a directory, a container or a user namespace of his own chooses what maps prints as a path. He
does not choose device numbers. The kernel keeps memfds, shared and secret memory and anonymous huge pages on
mounts of its own, which no path leads to: their devices are learnt by making one such object each. The type
of any other file system is told by mountinfo, and of a file its inode.

The answers hold while the object is mapped: its file system lives as long, and keeps its device number.
"""

import contextlib
import enum
import functools
import mmap
import os
import socket
from collections.abc import Callable, Iterable
from collections.abc import Mapping as ReadOnlyDict

import attrs

from memfs.linux.maps import Mapping
from memfs.linux.mountinfo import MountList, MountTable, list_mounts, read_mounts_of
from memfs.linux.selfmap import map_line
from memfs.linux.span import Span
from memfs.linux.syscalls import create_secret_memory
from memfs.target.mapped import Look, look_at, open_proven

Device = tuple[int, int]
"""Major and minor number."""


class Origin(enum.Enum):
    """What kind of object a mapping shows."""

    NOTHING = enum.auto()
    """No object: private anonymous memory, and what the kernel maps into each process."""
    MEMORY = enum.auto()
    """A memfd, a System V segment, shared anonymous memory: a file that no path leads to."""
    HUGE = enum.auto()
    """The same in huge pages, and private anonymous memory in huge pages too."""
    SECRET = enum.auto()
    """Memory that only its owner can read, memfd_secret(2)."""
    FILE = enum.auto()
    """A regular file of a file system that needs no one's help to read it."""
    SERVED = enum.auto()
    """A file for which another process or machine may have to be asked, and may never answer."""
    ZERO = enum.auto()
    """The device /dev/zero: private anonymous memory, but for the name."""
    DEVICE = enum.auto()
    """Memory of a driver."""
    UNSEEN = enum.auto()
    """On such a file system, but not to be looked at: a file or, as only smaps tells, memory of a driver."""
    UNKNOWN = enum.auto()
    """Of a file system that no mount is known of: what it is, only the flags of smaps tell."""


ObjectKey = tuple[Device, int, Span | None]


def has_unique_numbers(mapping: Mapping) -> bool:
    """Whether no other object has the device and inode number of that which *mapping* shows.

    So it is on a disk, and for memfds and shared anonymous memory. Subvolumes of btrfs and layers of
    overlayfs may have the same numbers, a FUSE server says what it likes, and the number of a System V
    segment is that of its IPC namespace.
    """
    if mapping.device == internal_mounts().memory:
        return not mapping.path.startswith(b"/SYSV")
    return mapping.device[0] != 0


def object_key(mapping: Mapping) -> ObjectKey:
    """What tells the object of *mapping* from all others that the process maps: its numbers, if unique."""
    return mapping.device, mapping.inode, None if has_unique_numbers(mapping) else mapping.span


_HUGE_SHIFTS = (16, 19, 20, 21, 23, 24, 25, 28, 29, 30, 31, 34)
"""All sizes of huge pages, as powers of two: ``MFD_HUGE_*`` of <linux/memfd.h>."""
_MFD_HUGE_SHIFT = 26


@attrs.frozen
class InternalMounts:
    """The devices of the kernel's internal mounts; None, or nothing, for what this kernel has not."""

    memory: Device | None
    huge: frozenset[Device]
    secret: Device | None
    drivers: frozenset[Device]

    def origin_of(self, device: Device) -> Origin | None:
        """What lies on *device*; None where that is no internal mount."""
        if device == self.memory:
            return Origin.MEMORY
        if device in self.huge:
            return Origin.HUGE
        if device == self.secret:
            return Origin.SECRET
        return Origin.DEVICE if device in self.drivers else None


def _device_of(open_one: Callable[[], int], tell: Callable[[int], Device]) -> Device | None:
    try:
        fd = open_one()
    except OSError:
        return None
    try:
        return tell(fd)
    finally:
        os.close(fd)


def _device_by_stat(fd: int) -> Device:
    number = os.fstat(fd).st_dev
    return os.major(number), os.minor(number)


def _device_by_maps(fd: int) -> Device:
    os.ftruncate(fd, mmap.PAGESIZE)
    return map_line(fd).device


def _open_huge(shift: int) -> Callable[[], int]:
    flags = os.MFD_CLOEXEC | os.MFD_HUGETLB | shift << _MFD_HUGE_SHIFT
    return lambda: os.memfd_create("memfs-probe", flags)


@functools.cache
def internal_mounts() -> InternalMounts:
    """The internal mounts of this kernel, found by making something on each; no page is used for it."""
    huge = (_device_of(_open_huge(shift), _device_by_stat) for shift in _HUGE_SHIFTS)
    drivers = (
        _device_of(lambda: os.eventfd(0, os.EFD_CLOEXEC), _device_by_stat),  # anon_inode: perf, io_uring, KVM
        _device_of(lambda: socket.socket(socket.AF_UNIX).detach(), _device_by_stat),  # rings of packets
    )
    return InternalMounts(
        memory=_device_of(lambda: os.memfd_create("memfs-probe", os.MFD_CLOEXEC), _device_by_maps),
        huge=frozenset(device for device in huge if device is not None),
        secret=_device_of(create_secret_memory, _device_by_stat),
        drivers=frozenset(device for device in drivers if device is not None),
    )


_LOCAL_TYPES = frozenset(
    (
        b"bcachefs", b"btrfs", b"devtmpfs", b"erofs", b"hugetlbfs", b"overlay", b"ramfs", b"rootfs", b"tmpfs",
        b"ubifs", b"zfs",
    )
)  # fmt: skip
"""File systems that no block device stands for, and that read their files by themselves."""

_DRIVERS_TYPES = frozenset(
    (
        b"binder", b"bpf", b"cgroup", b"cgroup2", b"configfs", b"debugfs", b"devpts", b"efivarfs",
        b"functionfs", b"fusectl", b"mqueue", b"proc", b"pstore", b"resctrl", b"securityfs", b"selinuxfs",
        b"sysfs", b"tracefs",
    )
)  # fmt: skip
"""File systems whose files are functions of the kernel: to read one is not to read the memory it maps."""

_SERVED_BLOCK_TYPE = b"fuseblk"


def origin_by_type(fs_type: bytes, device: Device, *, ours: bool) -> Origin:
    """What a file is on a file system of *fs_type*; FILE may still be a device node.

    *ours*: whether it is mounted in our namespace. Anybody may put an overlay on top of a FUSE server in a
    namespace of his own; in ours it takes root.
    """
    base = fs_type.partition(b".")[0]
    if base in _DRIVERS_TYPES:
        return Origin.DEVICE
    if base == b"overlay" and not ours:
        return Origin.SERVED
    # A major number is that of a block device, which has a disk behind it and no server.
    local = device[0] != 0 and base != _SERVED_BLOCK_TYPE
    return Origin.FILE if local or base in _LOCAL_TYPES else Origin.SERVED


_MOST_REMEMBERED = 1 << 14


class Origins:
    """Finds the origin of each object that is mapped, and remembers which are regular files.

    One for the whole program. A regular file is remembered by device and inode number. Should a device node
    ever get the numbers of a file that is gone, it is taken for a file that cannot be opened, and read
    through the address space, as a device is: its bytes are right for all that. What is no regular file is
    looked at each time.
    """

    def __init__(self) -> None:
        self._table = MountTable()
        self._regular: set[tuple[Device, int]] = set()

    def find(self, thread: Callable[[], int], mappings: Iterable[Mapping]) -> "Found":
        """The origin of each of *mappings*: one question for each object.

        *thread* gives the number of a thread that has them, and is asked only where one must be looked at.
        """
        found: dict[tuple[Device, int], Origin] = {}
        ours: MountList | None = None
        theirs = _TheirTypes(thread)
        for mapping in mappings:
            if mapping.backed and (key := (mapping.device, mapping.inode)) not in found:
                ours = ours or self._table.get()
                found[key] = self._find_one(thread, mapping, ours, theirs)
        return Found(found)

    def _find_one(
        self, thread: Callable[[], int], mapping: Mapping, ours: MountList, theirs: "_TheirTypes"
    ) -> Origin:
        device = mapping.device
        internal = internal_mounts().origin_of(device)
        if internal is not None:
            return internal
        fs_type = ours.types.get(device)
        if fs_type is not None:
            origin = origin_by_type(fs_type, device, ours=True)
        elif (fs_type := theirs.get(device)) is not None:
            origin = origin_by_type(fs_type, device, ours=False)
        else:
            return Origin.UNKNOWN
        if origin is not Origin.FILE or (device, mapping.inode) in self._regular:
            return origin
        look = look_at(thread(), mapping, ours)
        if look is Look.REGULAR:
            if len(self._regular) >= _MOST_REMEMBERED:
                self._regular = set()
            self._regular.add((device, mapping.inode))
        return _BY_LOOK[look]

    def open(self, pid: int, mapping: Mapping) -> int:
        """Open the regular file that *mapping* of process *pid* shows, of a file system that can be trusted.

        Raises:
            OSError: it cannot be had.
        """
        return open_proven(pid, mapping, self._table.get())


_BY_LOOK = {
    Look.REGULAR: Origin.FILE,
    Look.ZERO: Origin.ZERO,
    Look.DEVICE: Origin.DEVICE,
    Look.NOTHING: Origin.UNSEEN,
}


@functools.cache
def origins() -> Origins:
    """The one of this process."""
    return Origins()


os.register_at_fork(after_in_child=origins.cache_clear)  # the fork server closes what it did not open


@attrs.frozen
class Found:
    """The origins of the objects of one process, by device and inode number."""

    _of: ReadOnlyDict[tuple[Device, int], Origin]

    def of(self, mapping: Mapping) -> Origin:
        """The origin of *mapping*."""
        return self._of[mapping.device, mapping.inode] if mapping.backed else Origin.NOTHING


class _TheirTypes:
    """The types of what is mounted in the namespace of another thread, read when first asked for."""

    def __init__(self, thread: Callable[[], int]) -> None:
        self._thread = thread
        self._types: ReadOnlyDict[Device, bytes] | None = None

    def get(self, device: Device) -> bytes | None:
        if self._types is None:
            self._types = {}
            with contextlib.suppress(OSError):
                self._types = list_mounts(read_mounts_of(self._thread())).types
        return self._types.get(device)
