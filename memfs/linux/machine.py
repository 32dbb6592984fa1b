"""The processor that we run on."""

import os

from memfs.linux.arch import Machine
from memfs.linux.x86 import X86

_KNOWN = {"x86_64": X86}  # by the name that uname(2) has


def this_machine() -> Machine | None:
    """Its tables; None where there are none yet."""
    return _KNOWN.get(os.uname().machine)
