"""The rows of the benchmark, and what each must show. To add one is to add a line here.

"At least" is a ratio of speeds within one run.
"""

import functools
from collections.abc import Callable

import attrs
from asking import ROUND_TRIP, SAME_ON_TMPFS, ask_attribute, follow_link, open_one, stat_one, walk
from contenders import (
    BARE_LOOP,
    Contender,
    Feed,
    Tool,
    by_tool,
    copy,
    core_copy,
    dd,
    feeds,
    gcore,
    nc,
    openssl,
    random_reads,
    read_together,
    readv_loop,
    seek_data,
    sent,
    sparse_dd,
    spliced,
    zstd,
)
from lab import MOST_READERS, Lab, Memory
from naming import (
    AMONG_FEW,
    find_machine,
    list_attributes,
    list_by_name,
    list_long,
    list_machine,
    list_names,
    list_process,
    stat_by_name,
    stat_processes,
    stat_vmas,
)
from results import AtLeast, AtMost, Exactly, Requirement, Sample, Unit, Within
from target import SPARSE_RUN_BYTES, SPARSE_RUNS

_K = 1 << 10
_MEM = "/proc/PID/mem"
_VMAS = (600, 6_000, 60_000)
_PROCESSES = (50, 500, 5_000)

Pick = Callable[[Lab], Memory]


@attrs.frozen
class Row:
    """One line of the table.

    Attributes:
        contenders: makes them, memfs first; it may start targets, so it is called when the row's turn comes.
    """

    name: str
    unit: Unit
    contenders: Callable[[Lab], tuple[Contender, ...]]
    required: tuple[Requirement, ...] = ()


def _private(lab: Lab) -> Memory:
    return lab.private


def _huge(lab: Lab) -> Memory:
    return lab.huge


def _shared(lab: Lab) -> Memory:
    return lab.shared


def _dd_row(label: str, pick: Pick, block: str, required: tuple[Requirement, ...] = ()) -> Row:
    size_bytes, direct = _BLOCKS[block]
    most_bytes = _SMALL_BLOCK_BYTES if size_bytes < _SMALL_BELOW else None

    def contenders(lab: Lab) -> tuple[Contender, ...]:
        memory = pick(lab)
        tool = dd(size_bytes, most_bytes=most_bytes, direct=direct)
        return (*by_tool(lab, memory, tool), readv_loop(memory))

    return Row(f"{label}, dd bs={block}", Unit.RATE, contenders, required)


_BLOCKS = {
    "4K": (4 * _K, False),
    "16K": (16 * _K, False),
    "64K": (64 * _K, False),
    "128K": (128 * _K, False),
    "256K": (256 * _K, False),
    "1M": (1024 * _K, False),
    "1M direct": (1024 * _K, True),
}
_SMALL_BELOW = 16 * _K
_SMALL_BLOCK_BYTES = 256 << 20
"""What dd reads in blocks smaller than that: a round trip for each takes pyfuse3 30 s for 2 GiB, and 65,536
of them tell its speed as well."""
_OVER_PLAIN = AtLeast("pyfuse3", 1.3)
_TOOLS = {
    "openssl dgst -sha256": (openssl, (AtLeast(_MEM, 1.0), _OVER_PLAIN)),
    "zstd -1": (zstd, (AtLeast(_MEM, 1.0), _OVER_PLAIN)),
    "nc over loopback": (nc, (AtLeast(_MEM, 1.0), _OVER_PLAIN)),
    "cp to tmpfs": (copy, ()),
}
_DD_REQUIRED = {
    "16K": (AtLeast(_MEM, 0.4), _OVER_PLAIN),
    "128K": (AtLeast(_MEM, 0.7), _OVER_PLAIN),
    "1M": (AtLeast(_MEM, 0.7), _OVER_PLAIN),
}
_SHARED_REQUIRED = (AtLeast(_MEM, 1.1), _OVER_PLAIN)
_MOVERS = {"splice to a pipe": spliced, "sendfile to a socket": sent}
_READERS = (1, 2, 4, 8, 16)
_BY_DD = "dd conv=sparse of /proc/PID/mem"


def _sparse_copy(lab: Lab) -> tuple[Contender, ...]:
    """As runs, not as bytes: the two copies hold as much, and differ in what lies between."""

    def copied(name: str, memory: Memory) -> Contender:
        feed = Feed(memory, memory.file)
        return Contender(name, lambda: attrs.evolve(copy(lab, feed), amount=1))

    by_dd = Feed(lab.sparse_for_dd, None)
    return (
        copied("memfs", lab.sparse),
        copied("cp of 64 MiB, not sparse", lab.dense),
        Contender(_BY_DD, lambda: sparse_dd(lab, by_dd), rounds=1),
    )


def _sparse_plain(lab: Lab) -> tuple[Contender, ...]:
    """Alone, since it takes so long: it knows no holes, and so 64 GiB go through it."""
    ours, plain = (
        Feed(lab.sparse, lab.sparse.file),
        Feed(lab.sparse_for_dd, lab.plain_file(lab.sparse_for_dd)),
    )
    return (
        Contender("memfs", lambda: attrs.evolve(copy(lab, ours), amount=1)),
        Contender("pyfuse3", lambda: attrs.evolve(copy(lab, plain), amount=1), rounds=1),
    )


def _cores(lab: Lab) -> tuple[Contender, ...]:
    memory = lab.private
    return (core_copy(lab, memory), gcore(lab, memory))


def _seek(lab: Lab) -> tuple[Contender, ...]:
    return (seek_data(lab.untouched),)


Part = tuple[Feed, int, int]


def _slices(feed: Feed, count: int) -> list[Part]:
    size = feed.memory.size_bytes // MOST_READERS * MOST_READERS // count
    return [(feed, number * size, size) for number in range(count)]


def _readers_of_one(count: int, lab: Lab) -> tuple[Contender, ...]:
    compared = feeds(lab, lab.private)
    compared["two bare loops"] = Feed(lab.private, lab.twice_bare_file(lab.private))
    parts = {name: _slices(feed, count) for name, feed in compared.items()}
    return _readers(lab, parts, _LONE, _slices(Feed(lab.private, lab.private.file), 1))


def _readers_of_many(count: int, lab: Lab) -> tuple[Contender, ...]:
    pack = lab.pack[:count]
    whole = lab.scale.pack_bytes
    parts = {
        "memfs": [(Feed(memory, memory.file), 0, whole) for memory in pack],
        _MEM: [(Feed(memory, None), 0, whole) for memory in pack],
        "pyfuse3": [(Feed(memory, lab.plain_file(memory)), 0, whole) for memory in pack],
    }
    return _readers(lab, parts, _IN_TURN, parts["memfs"])


def _readers(
    lab: Lab, parts: dict[str, list[Part]], measure: str, alone: list[Part]
) -> tuple[Contender, ...]:
    """*parts* of each contender at once; and, as the *measure* of ours, no two at once: *alone*."""
    block = 1024 * _K

    def together(name: str, of: list[Part]) -> Contender:
        return Contender(name, lambda: read_together(lab, of, block))

    def in_turn() -> Sample:
        samples = [read_together(lab, [part], block) for part in alone]
        return Sample(sum(s.seconds for s in samples), sum(s.amount for s in samples))

    found = [together(name, of) for name, of in parts.items()]
    return (found[0], Contender(measure, in_turn), *found[1:])


_LONE = "one reader"
"""Of all of it."""
_IN_TURN = "one after another"
_JUDGED_READERS = 8


def _readers_rows() -> list[Row]:
    kinds = {"one process": (_readers_of_one, _LONE), "as many processes": (_readers_of_many, _IN_TURN)}
    return [
        Row(
            f"{count} readers of {whose}, dd bs=1M",
            Unit.RATE,
            functools.partial(make, count),
            (AtLeast(measure, 0.9),) if count == _JUDGED_READERS else (),
        )
        for whose, (make, measure) in kinds.items()
        for count in _READERS
    ]


def _names_rows() -> list[Row]:
    """Each size of one question beside the others: what is asked of the largest is a flat cost."""
    listings: list[tuple[str, Callable[[int, Lab], tuple[Contender, ...]], float | None]] = [
        ("ls", functools.partial(list_names, "ls", ()), 1.0),
        ("find", functools.partial(list_names, "find", ("-type", "f")), None),
        ("ls -l", list_long, 3.0),
    ]
    crowds: list[tuple[str, Callable[[int, Lab], tuple[Contender, ...]]]] = [
        ("find -maxdepth 1", functools.partial(find_machine, 1)),
        ("ls -l", list_machine),
        ("ls by-name", list_by_name),
        ("stat of one", stat_processes),
        ("stat of one by its name", stat_by_name),
    ]
    return [
        *(
            Row(
                f"{count:,} VMAs, {tool}",
                Unit.TIME,
                functools.partial(make, count),
                (Within(most_s),) if most_s and count == _VMAS[-1] else (),
            )
            for tool, make, most_s in listings
            for count in _VMAS
        ),
        Row("2,000 VMAs, getfattr -d", Unit.TIME, functools.partial(list_attributes, 2_000), (Within(1.0),)),
        *(
            Row(f"one file, {what}", Unit.TIME, make, (AtMost(ROUND_TRIP, most),) if most else ())
            for what, make, most in (
                ("stat", stat_one, 4),
                ("open, read 4 KiB, close", open_one, 8),
                ("getxattr", ask_attribute, 4),
                ("readlink", follow_link, 0),
            )
        ),
        *(
            Row(
                f"2,000 VMAs, {what}",
                Unit.TIME,
                functools.partial(walk, ["sh", "-c", command]),
                (AtMost(SAME_ON_TMPFS, 10),),
            )
            for what, command in (
                ("cp -r", 'cp -r . "$OUT"'),
                ("sha256sum *", "sha256sum *"),
                ("rg", "rg -a nowhere-to-be-found .; test $? = 1"),
                ("tar -S", 'tar -cSf "$OUT/tar" .'),
                ("find -printf", "find . -printf '%s %b\\n'"),
                ("ls -l", "ls -l"),
            )
        ),
        Row("60,000 VMAs, stat of one", Unit.TIME, stat_vmas, (AtMost(AMONG_FEW, 1.25),)),
        Row("60,000 VMAs, ls of the process", Unit.TIME, list_process, (AtMost(AMONG_FEW, 1.25),)),
        *(
            Row(f"{count:,} processes, {tool}", Unit.TIME, functools.partial(make, count))
            for tool, make in crowds
            for count in _PROCESSES
        ),
        Row("the whole machine, find -maxdepth 2", Unit.TIME, functools.partial(find_machine, 2, 500)),
    ]


def _by_tool(pick: Pick, tool: Tool, lab: Lab) -> tuple[Contender, ...]:
    """With a file of tmpfs as the limit: what the tool itself takes, with nothing in its way."""
    memory = pick(lab)
    limit = Feed(memory, lab.copy_of(memory))
    return (*by_tool(lab, memory, tool), Contender("a file on tmpfs", lambda: tool(lab, limit)))


def _random_reads(lab: Lab) -> tuple[Contender, ...]:
    return random_reads(lab, lab.private, 4 * _K)


def all_rows() -> list[Row]:
    """Every row, in the order of the table: those with the same contenders stand together."""
    return [
        *(_dd_row("private", _private, block, _DD_REQUIRED.get(block, ())) for block in _BLOCKS),
        *(_dd_row("huge pages", _huge, block) for block in _BLOCKS),
        *(_dd_row("shared", _shared, block, _SHARED_REQUIRED) for block in ("16K", "128K", "1M")),
        *(
            Row(
                f"shared, {name}",
                Unit.RATE,
                functools.partial(_by_tool, _shared, tool),
                (AtLeast(_MEM, 3.0), _OVER_PLAIN),
            )
            for name, tool in _MOVERS.items()
        ),
        Row("private, pread of 4 KiB", Unit.TIME, _random_reads, (AtMost(BARE_LOOP, 1.5),)),
        *(
            Row(f"private, {name}", Unit.RATE, functools.partial(_by_tool, _private, tool), required)
            for name, (tool, required) in _TOOLS.items()
        ),
        Row("private, a core file of it all to tmpfs", Unit.TIME, _cores),
        Row(
            "64 GiB with 64 MiB touched, cp",
            Unit.TIME,
            _sparse_copy,
            (
                AtLeast("cp of 64 MiB, not sparse", 0.5),
                AtLeast(_BY_DD, 50),
                Exactly("bytes_on_disk", SPARSE_RUNS * SPARSE_RUN_BYTES),
            ),
        ),
        Row("64 GiB with 64 MiB touched, cp by pyfuse3", Unit.TIME, _sparse_plain, (_OVER_PLAIN,)),
        Row("1 TiB untouched, SEEK_DATA", Unit.TIME, _seek, (Within(0.01),)),
        *_readers_rows(),
        *_names_rows(),
    ]
