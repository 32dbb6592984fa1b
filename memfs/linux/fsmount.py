"""New mounts by descriptor: fsopen(2), fsconfig(2), fsmount(2) and move_mount(2), since Linux 5.2.

mount(2) takes a path, which may lead elsewhere since it was looked at. Here the place is a descriptor.
"""

import ctypes
import enum
import os
from collections.abc import Mapping

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = [ctypes.c_long] * 6
_libc.syscall.restype = ctypes.c_long


class _Call(enum.IntEnum):
    """System calls that glibc has had functions for since 2.36; the same numbers on every architecture."""

    MOVE_MOUNT = 429
    FSOPEN = 430
    FSCONFIG = 431
    FSMOUNT = 432


class MountAttribute(enum.IntFlag):
    """``<linux/mount.h>``."""

    NOSUID = 0x2
    NODEV = 0x4


_CLOEXEC = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
_SET_STRING = 1  # FSCONFIG_SET_STRING
_CREATE = 6  # FSCONFIG_CMD_CREATE
_FROM_EMPTY_PATH = 0x04  # MOVE_MOUNT_F_EMPTY_PATH
_TO_EMPTY_PATH = 0x40  # MOVE_MOUNT_T_EMPTY_PATH
_NO_PATH = ctypes.create_string_buffer(b"")


def _call(number: _Call, *arguments: int) -> int:
    padded = (*arguments, 0, 0, 0, 0, 0)[:5]
    result: int = _libc.syscall(number, *padded)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{number.name.lower()}: {os.strerror(code)}")
    return result


def create_mount(fs_type: bytes, parameters: Mapping[bytes, bytes], attributes: MountAttribute) -> int:
    """Make a file system; returns a descriptor of its mount, which is not attached anywhere yet.

    Raises:
        PermissionError: needs CAP_SYS_ADMIN.
        OSError: the kernel does not know the type (ENODEV), or refuses a parameter (EINVAL).
    """
    name = ctypes.create_string_buffer(fs_type)
    context = _call(_Call.FSOPEN, ctypes.addressof(name), _CLOEXEC)
    try:
        for key, value in parameters.items():
            pair = ctypes.create_string_buffer(key), ctypes.create_string_buffer(value)
            _call(_Call.FSCONFIG, context, _SET_STRING, *map(ctypes.addressof, pair))
        _call(_Call.FSCONFIG, context, _CREATE)
        return _call(_Call.FSMOUNT, context, _CLOEXEC, attributes)
    finally:
        os.close(context)


def attach_mount(mount: int, directory: int) -> None:
    """Attach the mount *mount*, of :func:`create_mount`, to the directory of the descriptor *directory*.

    Raises:
        OSError: ENOENT where the directory was removed.
    """
    no_path = ctypes.addressof(_NO_PATH)
    _call(_Call.MOVE_MOUNT, mount, no_path, directory, no_path, _FROM_EMPTY_PATH | _TO_EMPTY_PATH)
