"""Runs a program on a kernel that lacks features: ``python without.py FEATURE[,FEATURE…] PROGRAM ARGUMENT…``.

A seccomp filter in front of the program, and of all that it starts, answers as a kernel does that does not
have them (seccomp(2), SECCOMP_RET_ERRNO): the program itself is the one that users run. Paths cannot be
filtered; so that /proc/PID/map_files does not open, the capabilities that it needs are dropped.

It needs root: with no_new_privs instead, set-uid programs below it would not be what they are.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

import attrs


@attrs.frozen
class Feature:
    """What a kernel may lack.

    Attributes:
        since: the release of Linux that brought it, or what else it takes.
        number: of its system call on x86-64; -1 where it is not filtered.
        request: of its ioctl(2), where it is one.
        errno: what a kernel without it answers.
        capabilities: what is dropped instead of filtered.
    """

    since: str
    number: int = -1
    request: int | None = None
    errno: int = errno.ENOSYS
    capabilities: tuple[int, ...] = ()


_IOCTL = 16
_CAP_SYS_ADMIN, _CAP_CHECKPOINT_RESTORE = 21, 40

FEATURES = {
    "pagemap_scan": Feature("Linux 6.7", _IOCTL, 0xC060_6610, errno.ENOTTY),
    "procmap_query": Feature("Linux 6.11", _IOCTL, 0xC068_6611, errno.ENOTTY),
    "passthrough": Feature("Linux 6.9", _IOCTL, 0x4010_E501, errno.ENOTTY),
    "userfaultfd_api": Feature("Linux 6.7 for WP_ASYNC", _IOCTL, 0xC018_AA3F, errno.EINVAL),
    "userfaultfd": Feature("CONFIG_USERFAULTFD", 323, errno=errno.ENOSYS),
    "process_vm_readv": Feature("CONFIG_CROSS_MEMORY_ATTACH", 310, errno=errno.ENOSYS),
    "process_madvise": Feature("Linux 5.10, CAP_SYS_NICE", 440, errno=errno.EPERM),
    "close_range": Feature("Linux 5.9", 436, errno=errno.ENOSYS),
    "perf_event": Feature("kernel.perf_event_paranoid", 298, errno=errno.EACCES),
    "map_files": Feature("CAP_CHECKPOINT_RESTORE", capabilities=(_CAP_SYS_ADMIN, _CAP_CHECKPOINT_RESTORE)),
}
"""By name. pidfd_open(2) and pidfd_getfd(2) are as old as the oldest kernel that memfs runs on."""

SETS = {
    "6.8": ("procmap_query", "passthrough"),
    "6.1": ("pagemap_scan", "procmap_query", "passthrough"),
    "none": tuple(name for name in FEATURES if name != "map_files"),
}
"""What kernels of these releases lack. Of an ioctl the filter sees the number, and not what it points to. So
what userfaultfd learnt in 6.7 is there, but what was written PAGEMAP_SCAN would have to tell."""

# <linux/filter.h>, <linux/seccomp.h>, <linux/audit.h>
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF_0000, 0x0005_0000
_AT_NUMBER, _AT_MACHINE, _AT_REQUEST = 0, 4, 24  # of struct seccomp_data: args[1] of ioctl, its lower half
_MACHINE_X86_64 = 0xC000_003E
_INSTRUCTION = struct.Struct("=HBBI")
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_PR_CAPBSET_DROP = 24


def lacking(names: str) -> tuple[str, ...]:
    """The features that *names*, which are parted by commas, name; a set's name stands for all of it."""
    found: dict[str, None] = {}
    for name in names.split(","):
        found.update(dict.fromkeys(SETS.get(name, (name,))))
    return tuple(found)


def _filter(features: list[Feature]) -> bytes:
    program = [
        (_LOAD, 0, 0, _AT_MACHINE),
        (_JUMP_EQUAL, 1, 0, _MACHINE_X86_64),
        (_RETURN, 0, 0, _ALLOW),
    ]
    for feature in features:
        answer = (_RETURN, 0, 0, _ERRNO | feature.errno)
        program.append((_LOAD, 0, 0, _AT_NUMBER))
        if feature.request is None:
            program += [(_JUMP_EQUAL, 0, 1, feature.number), answer]
        else:
            program += [
                (_JUMP_EQUAL, 0, 3, feature.number),
                (_LOAD, 0, 0, _AT_REQUEST),
                (_JUMP_EQUAL, 0, 1, feature.request),
                answer,
            ]
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(_INSTRUCTION.pack(*one) for one in program)


def lose(names: tuple[str, ...]) -> None:
    """Have this process, and all that it starts from now on, be without."""
    assert platform.machine() == "x86_64"
    libc = ctypes.CDLL(None, use_errno=True)
    features = [FEATURES[name] for name in names]
    filtered = [one for one in features if one.number >= 0]
    if filtered:
        code = _filter(filtered)
        room = ctypes.create_string_buffer(code, len(code))
        head = struct.pack("=HxxxxxxQ", len(code) // _INSTRUCTION.size, ctypes.addressof(room))
        if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head, 0, 0):
            raise OSError(ctypes.get_errno(), "the filter is refused")
    for capability in {each for one in features for each in one.capabilities}:
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):  # execve(2) takes it from root then
            raise OSError(ctypes.get_errno(), f"capability {capability} stays")


def main() -> None:
    """Run the program."""
    _, names, program, *arguments = sys.argv
    lose(lacking(names))
    os.execvp(program, [program, *arguments])


if __name__ == "__main__":
    main()
