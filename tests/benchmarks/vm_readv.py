"""process_vm_readv(2) as a program without a file tree calls it: the limit that a copy can reach."""

import ctypes
import mmap
import os

_libc = ctypes.CDLL(None, use_errno=True)


class _IoVec(ctypes.Structure):
    """``struct iovec`` (``<bits/types/struct_iovec.h>``)."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc.process_vm_readv.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
]  # fmt: skip
_libc.process_vm_readv.restype = ctypes.c_ssize_t


class RemoteReader:
    """Reads one process into a buffer of its own, made once, as both ranges are.

    Attributes:
        data: the buffer.
    """

    def __init__(self, pid: int, capacity: int) -> None:
        memory = mmap.mmap(-1, capacity)
        memory.write(bytes(capacity))  # its pages exist from here on
        self.data = memoryview(memory)
        self._pid = pid
        self._local = _IoVec(ctypes.addressof(ctypes.c_char.from_buffer(memory)), capacity)
        self._remote = _IoVec()
        self._local_at = ctypes.addressof(self._local)
        self._remote_at = ctypes.addressof(self._remote)

    def read(self, address: int, size: int) -> memoryview:
        """The *size* bytes at *address*, in the buffer until the next call.

        Raises:
            OSError: they cannot all be read.
        """
        self._local.length = self._remote.length = size
        self._remote.base = address
        copied = _libc.process_vm_readv(self._pid, self._local_at, 1, self._remote_at, 1, 0)
        if copied != size:
            number = ctypes.get_errno()
            raise OSError(number, f"process_vm_readv: {copied} of {size} bytes: {os.strerror(number)}")
        return self.data[:size]
