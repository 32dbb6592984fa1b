"""Access that is denied is an error that names the cause and the mend."""

import errno
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from process.reading import VMA
from process.trees import plain_tree
from support.target import Target

from memfs.errors import AccessDenied, errno_of
from memfs.linux.syscalls import read_process
from memfs.target.access import may_trace_all
from memfs.target.identity import identify
from memfs.target.process import AddressSpace
from memfs.target.vmaflags import VmaFlagsCache
from memfs.tree.nodes import Name, ProcessNode

NOBODY = 65534


@contextmanager
def being(uid: int) -> Iterator[None]:
    """Do as user *uid*, without root's capabilities."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_process_of_another_user_may_not_be_read_and_the_error_says_what_to_do() -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as child:
        identity = identify(child.pid)
        AddressSpace(identity, VmaFlagsCache(), memory=True).close()
        before = len(os.listdir("/proc/self/fd"))
        with being(NOBODY):
            assert not may_trace_all()
            with pytest.raises(AccessDenied) as denied:
                AddressSpace(identity, VmaFlagsCache(), memory=True)
            tree = plain_tree()
            assert tree.attributes(ProcessNode(identity, Name.PROCESS)).uid == 0
            for question in (tree.contents.open, tree.attributes):
                with pytest.raises(AccessDenied):
                    question(ProcessNode(identity, Name.MEM))
            with pytest.raises(AccessDenied):
                tree.list(ProcessNode(identity, Name.VMAS))
        assert "uid 0" in denied.value.sentence
        assert "root" in denied.value.hint
        assert len(os.listdir("/proc/self/fd")) == before
        child.communicate()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_one_s_own_process_may_be_read_without_root() -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, user=NOBODY, group=os.getegid()) as child:
        identity = identify(child.pid)
        with being(NOBODY), AddressSpace(identity, VmaFlagsCache(), memory=True) as space:
            text = space.text()
            assert text is not None
            assert os.pread(space.mem, 4, space.layout().regions[0].span.start) == b"\x7fELF"
        child.communicate()


def test_what_the_kernel_does_not_show_is_denied_and_not_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with proc_mem.force_override=never; process_vm_readv never reads what the process itself may not."""
    with Target("none-data", "private-full", directory=tmp_path) as target:
        hidden, shown = target.mapping("none-data"), target.mapping("private-full")
        with VMA.open(target.pid, hidden.span) as opened, VMA.open(target.pid, shown.span) as other:
            memories = (opened.source._space.mem, other.source._space.mem)
            preadv = os.preadv

            def read_unforced(fd: int, views: Sequence[memoryview], offset: int) -> int:
                if fd not in memories:
                    return preadv(fd, views, offset)
                try:
                    return read_process(target.pid, (offset, views[0]))
                except OSError:
                    raise OSError(errno.EIO, os.strerror(errno.EIO)) from None

            monkeypatch.setattr(os, "preadv", read_unforced)
            monkeypatch.setattr("memfs.image.memory.shows_protected", lambda: False)
            with pytest.raises(AccessDenied, match=f"process {target.pid} may not read itself") as denied:
                opened.read(hidden.data[0])
            assert errno_of(denied.value) == errno.EACCES
            assert shown.mismatch(0, other.read(shown.span)) is None
