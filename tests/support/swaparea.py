"""An area to swap to, and a memory cgroup in which a process has less memory than it needs; both go again."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_UNITED = Path("/sys/fs/cgroup")
_SEPARATE = Path("/sys/fs/cgroup/memory")


class SwapUnavailableError(Exception):
    """This machine lets no one add a swap area, or bound memory; the message says why. Tests skip."""


@contextmanager
def swap_area(directory: Path, size: int) -> Iterator[None]:
    """Have *size* bytes to swap to, in a file in *directory*, by a loop device where that must be.

    Raises:
        SwapUnavailableError: the kernel refuses both.
    """
    file = directory / "swap"
    with ExitStack() as stack:
        with file.open("wb") as opened:
            stack.callback(file.unlink)
            file.chmod(0o600)
            os.posix_fallocate(opened.fileno(), 0, size)
        _run("mkswap", file)
        area: Path = file
        if subprocess.run(["swapon", file], check=False, capture_output=True).returncode:
            # tmpfs, overlay and the like have no blocks that the kernel could write to by itself.
            area = Path(_run("losetup", "--find", "--show", file).strip())
            stack.callback(_run, "losetup", "--detach", area)
            _run("swapon", area)
        stack.callback(_run, "swapoff", area)
        yield


def _run(*argv: str | Path) -> str:
    try:
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise SwapUnavailableError(f"there is no {argv[0]}") from None
    except subprocess.CalledProcessError as error:
        raise SwapUnavailableError(f"{argv[0]}: {error.stderr.strip()}") from None


@contextmanager
def bounded_cgroup(limit: int) -> Iterator[Path]:
    """A new memory cgroup whose processes have *limit* bytes together; they have ended when it goes.

    Raises:
        SwapUnavailableError: there is no such controller here, or it may not be used.
    """
    separate = (_SEPARATE / "memory.limit_in_bytes").exists()
    top = _SEPARATE if separate else _UNITED
    if not separate and "memory" not in _read(_UNITED / "cgroup.subtree_control").split():
        raise SwapUnavailableError("no cgroup file system has the memory controller in its root")
    try:
        group = Path(tempfile.mkdtemp(prefix="memfs-test-", dir=top))
    except OSError as error:
        raise SwapUnavailableError(f"no cgroup can be made: {error}") from None
    try:
        group.chmod(0o755)
        (group / ("memory.limit_in_bytes" if separate else "memory.max")).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def swapped_bytes(pid: int) -> int:
    """How much of a process is swapped out."""
    (found,) = re.findall(r"^VmSwap:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found) * 1024
