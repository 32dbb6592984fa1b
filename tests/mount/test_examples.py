"""The examples are programs, and they work."""

import re
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


def test_a_warm_copy_of_a_loaded_server_arrives_in_rounds_that_shrink() -> None:
    done = run("sh", _EXAMPLES / "warm_copy.sh", timeout=90)
    assert (done.returncode, done.stderr) == (0, b"")
    said = done.stdout.decode()
    sent = [int(number) for number in re.findall(r"^round \d+: (\d+) bytes$", said, re.MULTILINE)]
    assert sent[0] > 64 << 20
    assert all(later < sent[0] / 2 for later in sent[1:])
    assert said.endswith("the image is the snapshot, byte for byte\n")
    assert b"memfs-warm" not in Path("/proc/mounts").read_bytes()
    assert not list(Path("/dev/shm").glob("memfs-warm*"))
