"""A user's files with names that are the kernel's own words: what is read of them is what is in them.

The attacker is a plain user in namespaces of his own, where he chooses every path; the reader is root.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
from elftools.elf.elffile import ELFFile
from mount.mounted import Mount, mounted, opened, read_all
from support.compiled import build
from support.held import Span
from support.pattern import PAGE

ATTACKER = 65534
PAGES = 16
CORE_AND_COPY = "core=full,snapshot_copy=1G"
"""Core files hold all that can be read; what is shared is copied, however much it is."""


@attrs.frozen
class Spoof:
    """A mapping as its process describes it."""

    span: Span
    shared: bool
    how: str
    path: str

    @property
    def expected(self) -> bytes:
        """What the process itself would read there."""
        first = "0" if self.how == "segment1" else "A"
        pages = [bytes((ord(first) + page,)) * PAGE for page in range(PAGES)]
        if self.how == "written":
            pages[5] = b"!" * PAGE
        return b"".join(pages)


@attrs.frozen
class Attacker:
    """The process and what it maps."""

    pid: int
    spoofs: tuple[Spoof, ...]


@contextmanager
def attacking(user: int, directory: Path) -> Iterator[Attacker]:
    """The program of ``spoofed.c``, run by *user* in his *directory*."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [build("spoofed"), directory],
        stdin=pipe, stdout=pipe, text=True, user=user, group=user, extra_groups=[],
    ) as program:  # fmt: skip
        assert program.stdout is not None
        try:
            spoofs = []
            for line in iter(program.stdout.readline, "ready\n"):
                assert line, f"it ended with status {program.wait()}"
                start, end, letter, how, path = line.rstrip("\n").split(" ", 4)
                span = Span(int(start, 16), int(end, 16))
                spoofs.append(Spoof(span, letter == "s", how, path))
            yield Attacker(program.pid, tuple(spoofs))
        finally:
            program.kill()


@pytest.fixture(scope="module")
def attacker() -> Iterator[Attacker]:
    with TemporaryDirectory(dir="/tmp") as directory:
        os.chown(directory, ATTACKER, ATTACKER)
        with attacking(ATTACKER, Path(directory)) as found:
            yield found


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with mounted(tmp_path_factory.mktemp("full"), *CORE_AND_COPY.split(",")) as mount:
        yield mount


def wrong_in(directory: Path, spoofs: tuple[Spoof, ...]) -> list[Spoof]:
    """The mappings of which ``vmas/`` or ``mem`` of *directory* shows anything else than what is in them."""
    by_start = {int(name.partition("-")[0], 16): name for name in os.listdir(directory / "vmas")}
    wrong = []
    with opened(directory / "mem") as mem:
        for spoof in spoofs:
            vma = directory / "vmas" / by_start.get(spoof.span.start, "none")
            by_file = vma.read_bytes() if vma.exists() else None
            by_mem = read_all(mem, spoof.span.length, spoof.span.start)
            if by_file != spoof.expected or by_mem != spoof.expected:
                wrong.append(spoof)
    return wrong


def test_the_attacker_does_what_it_is_to_do(attacker: Attacker) -> None:
    assert len(attacker.spoofs) > 150
    assert {spoof.how for spoof in attacker.spoofs} >= {"untouched", "read", "written", "leased", "segment1"}
    maps = Path(f"/proc/{attacker.pid}/maps").read_text()
    for word in ("/anon_hugepage", "/secretmem", "/dev/zero", "/[vvar]", "/dev/mem", "/memfd:x (deleted)"):
        assert f" {word}\n" in maps


def test_live_memory_has_the_bytes_of_the_files_whatever_they_are_called(
    full: Mount, attacker: Attacker
) -> None:
    assert wrong_in(full.process(attacker.pid), attacker.spoofs) == []


def test_a_snapshot_has_them_too(full: Mount, attacker: Attacker) -> None:
    with full.snapshot(attacker.pid) as frozen:
        assert wrong_in(frozen, attacker.spoofs) == []


def test_a_core_file_has_them_too(full: Mount, attacker: Attacker) -> None:
    with open(full.process(attacker.pid) / "core", "rb") as file:
        segments = {s["p_vaddr"]: s.data() for s in ELFFile(file).iter_segments() if s["p_type"] == "PT_LOAD"}
    wrong = [spoof for spoof in attacker.spoofs if segments.get(spoof.span.start) != spoof.expected]
    assert wrong == []


def test_the_kernel_itself_says_the_same(attacker: Attacker) -> None:
    # Last of all, as this touches every page.
    with opened(Path(f"/proc/{attacker.pid}/mem")) as mem:
        for spoof in attacker.spoofs:
            assert read_all(mem, spoof.span.length, spoof.span.start) == spoof.expected, spoof
