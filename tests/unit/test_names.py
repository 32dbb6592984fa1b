"""File names of mappings: safe in a shell, short, and they lead back to the mapping."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unit.values import mappings

from memfs.linux.maps import Access, Mapping
from memfs.linux.span import Span
from memfs.target.layout import label_of, name_of, safe_name, start_of

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
    assert start_of(name) == mapping.span.start


@given(st.lists(mappings.filter(lambda mapping: mapping.span.end <= 1 << 48), max_size=6))
def test_names_sort_by_address(several: list[Mapping]) -> None:
    starts = [start_of(name) for name in sorted(map(name_of, several))]
    assert starts == sorted(mapping.span.start for mapping in several)


@given(st.binary(max_size=40))
@example(b"")
@example(b"heap")
@example(b"-")
@example(b"xyz-123")
@example(b"f" * 255)
def test_any_name_has_a_start_or_none(name: bytes) -> None:
    start = start_of(name)
    assert start is None or b"-" in name


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
