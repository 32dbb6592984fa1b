"""A PM QoS request: while it is held, idle CPUs do not sleep deeply, so that they wake at once.

``Documentation/power/pm_qos_interface.rst``: a 32-bit number of microseconds written to
/dev/cpu_dma_latency holds for as long as the descriptor is open. The file belongs to root.
"""

import os
import struct

_DEVICE = "/dev/cpu_dma_latency"
_NO_LATENCY = struct.pack("=i", 0)


class LatencyRequest:
    """The request, held or not. It costs power while it is held: hold it only when work flows."""

    def __init__(self) -> None:
        self._fd = -1

    @property
    def held(self) -> bool:
        """Whether CPUs are kept from sleeping."""
        return self._fd >= 0

    def hold(self) -> None:
        """Ask for no wake-up latency.

        Raises:
            PermissionError: needs root.
            FileNotFoundError: the kernel has no such device.
        """
        if self._fd < 0:
            fd = os.open(_DEVICE, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, _NO_LATENCY)
            except OSError:
                os.close(fd)
                raise
            self._fd = fd

    def release(self) -> None:
        """Let the CPUs sleep again; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
