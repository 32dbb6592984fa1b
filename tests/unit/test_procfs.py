"""The texts of /proc: whatever the kernel can print is parsed, and into the values that were printed."""

import string

import attrs
from hypothesis import example, given
from hypothesis import strategies as st
from unit.values import UINT64, format_maps_line, mappings

from memfs.linux.maps import Access, Mapping, parse_maps
from memfs.linux.smaps import MemoryUse, parse_smaps
from memfs.linux.span import Span
from memfs.linux.stat import TaskFlag, parse_stat
from memfs.linux.status import parse_status

STARTS = st.integers(0, (1 << 40) - 1).map(lambda page: page << 12)
KIB = st.integers(0, (1 << 40) - 1)
LETTERS = st.text(string.ascii_lowercase, min_size=2, max_size=2).map(str.encode)

MADE_BY_HAND = (
    (
        b"7f1c2a000000-7f1c2a021000 rw-p 00000000 00:00 0 \n",
        Mapping(Span(0x7F1C2A000000, 0x7F1C2A021000), Access.READ | Access.WRITE, 0, (0, 0), 0, b""),
    ),
    (
        b"00400000-00452000 r-xs 000fe000 08:1f 173521      /a\\012b (deleted)\n",
        Mapping(
            Span(0x400000, 0x452000),
            Access.READ | Access.EXEC | Access.SHARED,
            0xFE000,
            (8, 0x1F),
            173521,
            b"/a\nb (deleted)",
        ),
    ),
    (
        b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n",
        Mapping(Span(0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000), Access.EXEC, 0, (0, 0), 0, b"[vsyscall]"),
    ),
)


def test_lines_of_a_real_kernel_are_read() -> None:
    text = b"".join(line for line, _ in MADE_BY_HAND)
    assert parse_maps(text) == tuple(mapping for _, mapping in MADE_BY_HAND)


@given(st.lists(mappings, max_size=8))
@example([MADE_BY_HAND[1][1]])
def test_parsing_what_was_printed_gives_back_every_mapping(printed: list[Mapping]) -> None:
    assert parse_maps(b"".join(map(format_maps_line, printed))) == tuple(printed)


@given(mappings, st.binary(max_size=200).map(lambda name: name.replace(b"\n", b"\\012")))
def test_no_name_hides_its_line_or_makes_another_one(mapping: Mapping, name: bytes) -> None:
    text = format_maps_line(mapping).rstrip(b"\n") + b"/" + name + b"\n"
    (parsed,) = parse_maps(text)
    assert (parsed.span, parsed.access, parsed.inode) == (mapping.span, mapping.access, mapping.inode)


def test_the_letters_of_an_access_are_those_of_its_line() -> None:
    letters = {str(Access(bits)) for bits in range(16)}
    assert letters == {r + w + x + s for r in "r-" for w in "w-" for x in "x-" for s in "sp"}


def smaps_entry(mapping: Mapping, use: MemoryUse) -> bytes:
    """An entry as the kernel prints it, with some of the lines that memfs does not need."""
    return (
        b"%sSize: 4 kB\nRss: %18d kB\nPss: 7 kB\nAnonHugePages: 0 kB\nSwap: %d kB\nSwapPss: 3 kB\n%s%s \n"
        % (
            format_maps_line(mapping),
            use.resident_bytes // 1024,
            use.swapped_bytes // 1024,
            b"ProtectionKey:         0\nVmFlags:",
            b"".join(b" " + flag for flag in sorted(use.flags)),
        )
    )


@given(st.lists(st.tuples(mappings, KIB, KIB, st.frozensets(LETTERS)), max_size=5))
def test_smaps_gives_every_mapping_its_own_figures(
    printed: list[tuple[Mapping, int, int, frozenset[bytes]]],
) -> None:
    uses = [MemoryUse(m.span.start, 1024 * rss, 1024 * swap, flags) for m, rss, swap, flags in printed]
    text = b"".join(smaps_entry(entry[0], use) for entry, use in zip(printed, uses, strict=True))
    assert list(parse_smaps(text)) == uses


def stat_line(comm: bytes, numbers: list[int]) -> bytes:
    """pid (comm) state and fields 4 to 52 of proc_pid_stat(5)."""
    return b"42 (%s) S %s\n" % (comm, b" ".join(b"%d" % number for number in numbers))


@given(st.binary(max_size=15), st.lists(UINT64, min_size=49, max_size=49))
@example(b"a) S 1 (b", list(range(49)))
@example(b") R\n1 (", list(range(49)))
@example(b"", list(range(49)))
def test_a_stat_line_is_read_whatever_the_name_of_the_process(comm: bytes, numbers: list[int]) -> None:
    numbers[5] &= 0xFFFFFFFF
    stat = parse_stat(stat_line(comm, numbers))
    field = dict(enumerate(numbers, start=4))
    assert (stat.pid, stat.comm, stat.state) == (42, comm, b"S")
    assert (stat.flags, stat.start_ticks, stat.address_bytes) == (field[9], field[22], field[23])
    assert (stat.code_start, stat.stack_start, stat.heap_start) == (field[26], field[28], field[47])


def test_a_zombie_has_no_memory_and_neither_has_who_has_no_address_space() -> None:
    numbers = [1] * 49
    assert parse_stat(stat_line(b"x", numbers)).has_memory
    assert not parse_stat(stat_line(b"x", numbers).replace(b" S ", b" Z ", 1)).has_memory
    numbers[19] = 0
    assert not parse_stat(stat_line(b"x", numbers)).has_memory


def test_a_main_thread_that_has_ended_is_told_from_a_process_that_has() -> None:
    numbers = [1] * 49
    numbers[20 - 4] = 3
    zombie = stat_line(b"x", numbers).replace(b" S ", b" Z ", 1)
    assert parse_stat(zombie).main_ended
    assert not parse_stat(stat_line(b"x", numbers)).main_ended
    numbers[20 - 4] = 1
    assert not parse_stat(stat_line(b"x", numbers).replace(b" S ", b" Z ", 1)).main_ended


def test_exec_shows_in_the_flags_and_in_each_address() -> None:
    numbers = [1] * 49
    before = parse_stat(stat_line(b"x", numbers))
    assert before.same_program(parse_stat(stat_line(b"renamed", numbers)))
    for field, value in ((9, int(TaskFlag.FORKED_NO_EXEC)), (26, 7), (28, 7), (47, 7)):
        changed = list(numbers)
        changed[field - 4] = value
        after = parse_stat(stat_line(b"x", changed))
        assert not before.same_program(after)
        # Each thread has flags of its own.
        assert before.same_program(attrs.evolve(after, thread=7)) is (field == 9)


@given(st.tuples(UINT64, UINT64, UINT64, UINT64), st.tuples(UINT64, UINT64, UINT64, UINT64), KIB, KIB, UINT64)
def test_status_gives_the_effective_ids_of_four(
    uids: tuple[int, ...], gids: tuple[int, ...], rss: int, swap: int, process: int
) -> None:
    text = (
        b"Name:\tUid:\\nTgid:\nUmask:\t0022\nTgid:\t%d\nNgid:\t0\nPid:\t7\nUid:\t%d\t%d\t%d\t%d\n"
        b"Gid:\t%d\t%d\t%d\t%d\nGroups:\t1 2 \nVmHWM:\t  99 kB\nVmRSS:\t%8d kB\nVmSwap:\t%8d kB\n"
    ) % (process, *uids, *gids, rss, swap)
    status = parse_status(text)
    assert (status.process, status.uid, status.gid) == (process, uids[1], gids[1])
    assert (status.resident_bytes, status.swapped_bytes) == (1024 * rss, 1024 * swap)


def test_status_of_a_kernel_thread_has_no_memory() -> None:
    status = parse_status(b"Name:\tkthreadd\nTgid:\t2\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n")
    assert (status.resident_bytes, status.swapped_bytes) == (0, 0)
