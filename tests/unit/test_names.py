"""File names of mappings: safe in a shell, short, and they lead back to the mapping."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unit.values import accesses, mappings

from memfs.linux.maps import Access, Mapping
from memfs.linux.span import Span
from memfs.vmanames import VmaName, label_of, name_of, parse_vma_name, safe_name

SAFE = re.compile(rb"[A-Za-z0-9._+-]{1,64}")


def mapped(path: bytes, *, shared: bool = False, inode: int = 1) -> Mapping:
    access = Access.READ | (Access.SHARED if shared else Access(0))
    return Mapping(Span(0x1000, 0x3000), access, 0, (8, 1), inode, path)


@given(st.binary(max_size=300))
@example(b"")
@example(b"a" * 65)
@example("\N{SNOWMAN}".encode())
@example(b".")
@example(b"..")
def test_a_safe_name_is_safe_and_no_directory_s_own(name: bytes) -> None:
    assert SAFE.fullmatch(safe_name(name))
    assert safe_name(name) not in (b".", b"..")


@given(st.from_regex(SAFE, fullmatch=True).filter(lambda name: name.strip(b".")))
def test_a_name_that_is_safe_stays_as_it_is(name: bytes) -> None:
    assert safe_name(name) == name


@given(mappings)
def test_a_label_is_safe_whatever_is_mapped(mapping: Mapping) -> None:
    assert SAFE.fullmatch(label_of(mapping))


@given(mappings)
def test_a_name_is_start_end_perms_label_and_leads_back(mapping: Mapping) -> None:
    name = name_of(mapping)
    assert re.fullmatch(rb"[0-9a-f]{12,16}-[0-9a-f]{12,16}_[r-][w-][x-][ps]_[A-Za-z0-9._+-]{1,64}", name)
    assert parse_vma_name(name) == VmaName(mapping.span, mapping.access, label_of(mapping))


@given(st.lists(mappings.filter(lambda mapping: mapping.span.end <= 1 << 48), max_size=6))
def test_names_sort_by_address(several: list[Mapping]) -> None:
    parsed = [parse_vma_name(name) for name in sorted(map(name_of, several))]
    starts = [name.span.start for name in parsed if name is not None]
    assert starts == sorted(mapping.span.start for mapping in several)


_ADDRESSES = st.integers(0, (1 << 64) - 1)
_NAMES = st.builds(
    VmaName,
    st.builds(Span, _ADDRESSES, _ADDRESSES),
    accesses,
    st.from_regex(SAFE, fullmatch=True),
)


@given(_NAMES)
def test_a_name_that_was_formatted_is_parsed(name: VmaName) -> None:
    assert parse_vma_name(name.format()) == name


@given(
    st.one_of(
        st.binary(max_size=40),
        st.from_regex(rb"[0-9a-fA-F]{10,17}-[0-9a-f]{10,17}_[rwxsp-]{4}_[a-z/ ]{0,3}\n?", fullmatch=True),
    )
)
@example(b"")
@example(b"heap")
@example(b"-")
@example(b"xyz-123")
@example(b"f" * 255)
@example(b"0000000000001000-000000002000_rw-p_anon")
@example(b"000000001000-000000002000_rw-p_anon\n")
def test_what_is_parsed_is_formatted_alike_and_all_else_is_no_name(name: bytes) -> None:
    parsed = parse_vma_name(name)
    assert parsed is None or parsed.format() == name


@pytest.mark.parametrize(
    ("mapping", "label"),
    [
        (mapped(b"", inode=0), b"anon"),
        (mapped(b"[heap]", inode=0), b"heap"),
        (mapped(b"[stack]", inode=0), b"stack"),
        (mapped(b"[vdso]", inode=0), b"vdso"),
        (mapped(b"[anon:my heap]", inode=0), b"anon.my_heap"),
        (mapped(b"[anon_shmem:odd;name]", shared=True), b"anon.odd_name"),
        (mapped(b"/memfd:build cache (deleted)", shared=True), b"memfd.build_cache"),
        (mapped(b"/dev/zero (deleted)", shared=True), b"shm"),
        (mapped(b"/SYSV0000cafe (deleted)", shared=True), b"shm"),
        (mapped(b"/usr/lib/libc.so.6"), b"libc.so.6"),
        (mapped(b"/tmp/gone (deleted)"), b"gone"),
        (mapped(b"/tmp/$(rm -rf ~)\n;'\"*?"), b"__rm_-rf_________"),
        (mapped(b"/tmp/" + b"n" * 255), b"n" * 64),
    ],
)
def test_a_label_says_what_is_mapped(mapping: Mapping, label: bytes) -> None:
    assert label_of(mapping) == label
