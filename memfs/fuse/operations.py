"""What pyfuse3 is asked: nothing here can be changed.

All other requests are answered before they come to it, see :mod:`memfs.fuse.server`.
"""

import errno
from typing import NoReturn

import pyfuse3


class Operations(pyfuse3.Operations):
    """The handlers that libfuse calls, each of which refuses."""

    supports_dot_lookup = False
    enable_writeback_cache = False


def _refuse_change(name: str) -> None:
    """Make the handler *name* answer that nothing here can be changed."""

    async def refuse(*_: object) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    refuse.__name__ = name
    setattr(Operations, name, refuse)


for _name in (
    "create", "link", "mknod", "removexattr", "rename", "setattr", "setxattr", "symlink", "unlink",
):  # fmt: skip
    _refuse_change(_name)
