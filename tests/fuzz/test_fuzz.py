"""The fuzzer, for half a minute of each run of the suite.

MEMFS_FUZZ_SECONDS and MEMFS_FUZZ_SEED change for how long and with what. By hand: ``tests/fuzz/run.py``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_SECONDS = float(os.environ.get("MEMFS_FUZZ_SECONDS", "30"))
_SEED = os.environ.get("MEMFS_FUZZ_SEED", "1")
_ENDS_SECONDS = 300.0
"""The most that a run takes besides: it waits so long for what does not end, and says what that was."""


@pytest.mark.timeout(_SECONDS + _ENDS_SECONDS + 30)
def test_random_programs_under_random_readers_gain_and_suffer_nothing() -> None:
    if os.geteuid() != 0:
        pytest.skip("targets of two users need root")
    program = str(Path(__file__).with_name("run.py"))
    argv = [sys.executable, program, "--suite", "--seconds", str(_SECONDS), "--seed", _SEED]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as fuzzer:
        try:
            said, _ = fuzzer.communicate(timeout=_SECONDS + _ENDS_SECONDS)
        except BaseException:
            fuzzer.terminate()  # then it ends all that it has started
            raise
    assert fuzzer.returncode == 0, said
