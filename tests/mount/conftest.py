"""Real mounts for tests, each checked at its end: status 0, a clean log, no mount and no process left."""

import ctypes
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.target import Target

pytest.register_assert_rewrite("mount.mounted")

from mount.kinds import CONTENT_KINDS  # noqa: E402
from mount.mounted import MEMFS, Mount, mounted, run  # noqa: E402 - it must be known as a test's before it is loaded

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_NOBODY = 65534
_DEVICE = Path("/dev/fuse")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what runs in the background: programs that the tests interrupt would never end.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _subreaper() -> Iterator[None]:
    """Daemons become children of this process, so that their exit status can be seen."""
    if os.geteuid() != 0:
        pytest.skip("the tests of the mount need root")
    libc = ctypes.CDLL(None)
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0


@pytest.fixture(params=["on", "off"])
def splice(request: pytest.FixtureRequest) -> str:
    """Both ways in which a reply is put together."""
    return str(request.param)


@pytest.fixture
def memfs(tmp_path: Path) -> Iterator[Mount]:
    """A mount with nothing but the defaults."""
    with mounted(tmp_path) as mount:
        yield mount


@pytest.fixture
def either_memfs(tmp_path: Path, splice: str) -> Iterator[Mount]:
    """A mount that splices, and one that copies."""
    with mounted(tmp_path, f"splice={splice}") as mount:
        yield mount


@pytest.fixture(scope="session")
def holder() -> Iterator[Target]:
    """A process that holds every kind of mapping that can be read whole, and never changes."""
    with (
        tempfile.TemporaryDirectory() as directory,
        Target(*CONTENT_KINDS, directory=Path(directory)) as target,
    ):
        yield target


@pytest.fixture
def shm() -> Iterator[Path]:
    """A directory on a tmpfs, which knows files of any size."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
def user() -> Iterator[int]:
    """The uid of a real second user, who may use /dev/fuse as udev lets him everywhere."""
    if run("env", MEMFS, "--version", user=_NOBODY).returncode:
        pytest.skip(f"uid {_NOBODY} may not run what is in the virtual environment")
    mode = _DEVICE.stat().st_mode & 0o7777
    _DEVICE.chmod(0o666)
    yield _NOBODY
    _DEVICE.chmod(mode)


@pytest.fixture
def roots_directory() -> Iterator[Path]:
    """A directory of root's into which everybody can look."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.fixture
def user_directory(user: int) -> Iterator[Path]:
    """A directory of the second user's own."""
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chown(directory, user, user)
    yield directory
    shutil.rmtree(directory)
