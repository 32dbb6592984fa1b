"""Hypothesis strategies for what the kernel prints, shared by the unit tests."""

from hypothesis import strategies as st

from memfs.linux.maps import Access, Mapping
from memfs.linux.span import PAGE_BYTES, Span

USER_PAGES = (1 << 56) // PAGE_BYTES
UINT64 = st.integers(0, (1 << 64) - 1)

_ODD_WORDS = st.sampled_from(
    [b" ", b"  ", b"\n", b"\r", b"\x0b", b" (deleted)", b"[heap]", b"]", b"-", b"\xff"]
)
_PARTS = st.one_of(_ODD_WORDS, st.binary(min_size=1, max_size=40), st.just(b"d" * 255 + b"/"))

file_paths = (
    st.lists(_PARTS, max_size=24)
    .map(lambda parts: b"/" + b"".join(parts).replace(b"\0", b"0").rstrip(b"/"))
    # The kernel turns a newline into \012 and leaves a backslash alone: such a name is ambiguous.
    .filter(lambda path: b"\\012" not in path)
)
bracket_names = st.one_of(
    st.sampled_from(
        [b"[heap]", b"[stack]", b"[vdso]", b"[vvar]", b"[vvar_vclock]", b"[vsyscall]", b"[uprobes]"]
    ),
    st.from_regex(rb"\[anon(_shmem)?:[ -Z^-~]{0,79}\]", fullmatch=True).filter(
        lambda name: b"\\" not in name
    ),
)
paths = st.one_of(st.just(b""), bracket_names, file_paths, file_paths.map(lambda path: path + b" (deleted)"))
accesses = st.integers(0, 15).map(Access)


@st.composite
def page_spans(draw: st.DrawFn) -> Span:
    """A span of whole pages in user space, not empty."""
    first = draw(st.integers(0, USER_PAGES - 1))
    return Span(first * PAGE_BYTES, PAGE_BYTES * draw(st.integers(first + 1, USER_PAGES)))


mappings = st.builds(
    Mapping,
    span=page_spans(),
    access=accesses,
    offset=UINT64,
    device=st.tuples(st.integers(0, (1 << 12) - 1), st.integers(0, (1 << 20) - 1)),
    inode=UINT64,
    path=paths,
)


def format_maps_line(mapping: Mapping) -> bytes:
    """The line as ``show_map_vma`` of fs/proc/task_mmu.c prints it: a name stands in column 73."""
    head = b"%08x-%08x %s %08x %02x:%02x %d " % (
        mapping.span.start,
        mapping.span.end,
        str(mapping.access).encode(),
        mapping.offset,
        *mapping.device,
        mapping.inode,
    )
    path = mapping.path.replace(b"\n", b"\\012")
    return (head.ljust(73) + path if path else head) + b"\n"
