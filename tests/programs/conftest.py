"""The mount under which real programs are looked at, and the table that comes of it."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

pytest.register_assert_rewrite("mount.mounted", "programs.lab")

from mount.mounted import mounted  # noqa: E402 - it must be known as a test's before it is loaded
from programs.lab import HEAD, HERE, Lab, Row  # noqa: E402

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_MOUNT_SECONDS = 900.0
_rows = pytest.StashKey[list[Row]]()


@pytest.fixture(autouse=True, scope="session")
def _subreaper() -> Iterator[None]:
    """Daemons, and copies of processes that are left, become children of this process, and are seen."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A mount of root's, with the options that the test asks for, which ends as every mount must.

    Its directory is none of pytest's: other users work in it, and the start of another pytest locks them out.
    """
    with TemporaryDirectory(prefix="memfs-programs-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        with mounted(directory, *getattr(request, "param", ()), limit_seconds=_MOUNT_SECONDS) as mount:
            yield Lab(mount, directory, request.config.stash.setdefault(_rows, []))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These take longer than others."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(_MOUNT_SECONDS))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the rows of the table."""
    rows = config.stash.get(_rows, [])
    if rows:
        terminalreporter.section("what was frozen of each program")
        for line in (*HEAD, *rows):
            terminalreporter.write_line(str(line))
