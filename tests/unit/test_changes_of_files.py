"""What of a file changed, from the list that the mount gives; as values, without a mount."""

from pathlib import Path
from unittest.mock import create_autospec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfs.copy.since import Asked, Stretch, core_stretches, parse_changes, vma_name
from memfs.image.elfcore import Segment, lay_out
from memfs.linux.arch import CoreFormat
from memfs.linux.maps import Access
from memfs.linux.span import PAGE_BYTES, Span

_HEAD = b"since aa bb\n"


@st.composite
def ranges(draw: st.DrawFn) -> list[Span]:
    """Ranges of pages in order, apart from each other, up to the end of the address space."""
    bounds = draw(st.sets(st.integers(0, (1 << 35) - 1), max_size=40).map(sorted))
    pairs = zip(bounds[::2], bounds[1::2], strict=False)
    return [Span(start * PAGE_BYTES, end * PAGE_BYTES) for start, end in pairs]


def text_of(spans: list[Span]) -> bytes:
    """As ``.since/NAME`` has them."""
    return _HEAD + b"".join(b"%012x-%012x\n" % (span.start, span.end) for span in spans)


@given(ranges())
def test_all_ranges_come_back(spans: list[Span]) -> None:
    changes = parse_changes(text_of(spans))
    assert (changes.earlier, changes.later) == ("aa", "bb")
    assert list(changes.over(Span(0, 1 << 48))) == spans


@given(ranges(), st.integers(0, 1 << 35), st.integers(0, 1 << 35))
def test_a_part_has_what_of_each_range_lies_in_it(spans: list[Span], one: int, other: int) -> None:
    part = Span(min(one, other) * PAGE_BYTES, max(one, other) * PAGE_BYTES)
    changes = parse_changes(text_of(spans))
    expected = [inside for span in spans if (inside := span.clip(part))]
    assert list(changes.over(part)) == expected
    assert changes.weigh(part) == (sum(span.size for span in expected), len(expected))


def test_changes_of_addresses_are_changes_of_the_file_that_shows_them() -> None:
    changes = parse_changes(text_of([Span(0x7000, 0x9000), Span(0x20000, 0x21000)]))
    grown = Span(0x4000, 0x6000)
    asked = Asked((Stretch(Span(0, 0x4000), 0x6000),), (grown,))
    assert asked.changed(changes) == [Span(0x1000, 0x3000), grown]
    assert asked.weigh(changes) == (0x2000 + grown.size, 2)


def test_the_name_of_a_mapping_tells_whether_it_is_shared() -> None:
    assert vma_name("7f0000000000-7f0000001000_rw-s_memfd.p_s").access & Access.SHARED
    assert not vma_name("7f0000000000-7f0000001000_rw-p_memfd.s_s").access & Access.SHARED


@pytest.mark.parametrize("word_bytes", [4, 8])
def test_the_segments_of_a_core_file_are_found_that_have_bytes_in_it(word_bytes: int, tmp_path: Path) -> None:
    form = create_autospec(CoreFormat, instance=True, word_bytes=word_bytes, machine=62)
    spans = [Span(0x1000, 0x3000), Span(0x8000, 0x9000), Span(0x10000, 0x20000)]
    segments = [
        Segment(span, Access.READ, size) for span, size in zip(spans, (0x2000, 0, 0x10000), strict=True)
    ]
    layout = lay_out(form, b"", segments)
    with open(tmp_path / "core", "w+b", buffering=0) as core:
        core.write(layout.head)
        found = core_stretches(core.fileno())
    assert found == [Stretch(extent.span, extent.address) for extent in layout.extents]
    assert len(found) == 2


@pytest.mark.parametrize("text", [b"", b"\x7fELF", b"\x7fELF\x02" + bytes(20), b"#!/bin/sh\n" + bytes(100)])
def test_no_segments_are_found_in_what_is_no_elf_file(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "core").write_bytes(text)
    with open(tmp_path / "core", "rb") as core:
        assert core_stretches(core.fileno()) == []
