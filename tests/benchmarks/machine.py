"""Describes the machine that the figures came from."""

import contextlib
import os
import platform
import shutil
import struct
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

_CPUIDLE = Path("/sys/devices/system/cpu/cpuidle")
_LATENCY = Path("/dev/cpu_dma_latency")
_TOOLS = {"dd": ["dd", "--version"], "zstd": ["zstd", "--version"], "openssl": ["openssl", "version"]}


def describe() -> dict[str, str]:
    """Everything that the figures may depend on, by name, as text."""
    facts = {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _field("/proc/cpuinfo", "model name"),
        "cores": str(os.cpu_count()),
        "hypervisor": "yes" if "hypervisor" in _field("/proc/cpuinfo", "flags").split() else "no",
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / (1 << 20):.1f} GiB",
        "cpuidle driver": _text(_CPUIDLE / "current_driver"),
        "cpuidle governor": _text(_CPUIDLE / "current_governor_ro"),
        "cpu_dma_latency": "usable" if os.access(_LATENCY, os.W_OK) else "not usable",
        "huge pages": _text(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "user": "root" if os.geteuid() == 0 else "not root",
        "python": platform.python_version(),
        "memfs": version("memfs"),
        "pyfuse3": version("pyfuse3"),
    }
    for tool, argv in _TOOLS.items():
        if shutil.which(tool):
            said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
            facts[tool] = said.strip().splitlines()[0].strip("* ")
    return facts


def page_cache_bytes() -> int:
    """The page cache of the machine, without tmpfs and shared memory."""
    cached, shared = (int(_field("/proc/meminfo", name).split()[0]) << 10 for name in ("Cached", "Shmem"))
    return cached - shared


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else "none"


@contextlib.contextmanager
def kept_awake() -> Iterator[None]:
    """No CPU sleeps meanwhile, where that can be had: for contenders of which one sees to it itself."""
    try:
        device = os.open(_LATENCY, os.O_WRONLY)
    except OSError:
        yield
        return
    try:
        os.write(device, struct.pack("=i", 0))
        yield
    finally:
        os.close(device)
