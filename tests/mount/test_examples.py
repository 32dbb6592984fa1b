"""The examples are programs, and they work."""

from pathlib import Path

import pytest
from mount.mounted import run

_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.timeout(300)
def test_quickstart_shows_what_it_promises_and_leaves_nothing() -> None:
    done = run("sh", _EXAMPLES / "quickstart.sh", timeout=280)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert "passed" in lines[-1]
    assert b"quickstart" not in Path("/proc/mounts").read_bytes()
