"""Inode numbers: one for each thing, never the same for two, and leading nowhere once it is gone."""

import sys
import threading
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfs.errors import NoSuchEntry
from memfs.linux.span import PAGE_BYTES
from memfs.target.identity import Identity
from memfs.tree.inodes import ROOT_NUMBER, Inodes, is_vma
from memfs.tree.nodes import CommDir, Fixed, Name, Node, ProcessNode, VmaNode

FIXED = (Name.ROOT, Name.BY_NAME, Name.SELF)
OF_PROCESS = tuple(name for name in Name if name not in (*FIXED, Name.COMM))

identities = st.builds(Identity, pid=st.integers(1, 50), start_ticks=st.integers(1, 3))
pages = st.integers(0, (1 << 44) - 1)
nodes: st.SearchStrategy[Node] = st.one_of(
    st.builds(Fixed, st.sampled_from(FIXED)),
    st.builds(CommDir, st.binary(min_size=1, max_size=15)),
    st.builds(ProcessNode, identities, st.sampled_from(OF_PROCESS)),
    st.builds(
        lambda owner, one, other: VmaNode(
            owner, PAGE_BYTES * min(one, other), PAGE_BYTES * (max(one, other) + 1)
        ),
        identities,
        pages,
        pages,
    ),
)


@given(st.lists(nodes))
def test_a_number_leads_back_to_its_node_and_no_two_share_one(several: list[Node]) -> None:
    inodes = Inodes(set)
    numbers = [inodes.number_of(node) for node in several]
    assert [inodes.node_of(number) for number in numbers] == several
    assert [inodes.number_of(node) for node in several] == numbers
    assert len(set(numbers)) == len(set(several))
    assert [is_vma(number) for number in numbers] == [isinstance(node, VmaNode) for node in several]
    assert all(0 < number < 1 << 64 for number in numbers)


def test_the_root_has_the_number_that_fuse_gives_it() -> None:
    assert Inodes(set).number_of(Fixed(Name.ROOT)) == ROOT_NUMBER == 1


def test_numbers_of_the_living_survive_and_those_of_the_dead_lead_nowhere() -> None:
    survivor = Identity(1, 1)
    inodes = Inodes(lambda: {survivor, b"survivor"})
    lasting: tuple[Node, ...] = (ProcessNode(survivor, Name.MEM), CommDir(b"survivor"))
    kept = {node: inodes.number_of(node) for node in lasting}
    dead = [inodes.number_of(VmaNode(Identity(2, tick), 0x1000, 0x2000)) for tick in range(20_000)]
    assert {node: inodes.number_of(node) for node in kept} == kept
    assert [inodes.node_of(number) for number in kept.values()] == list(kept)
    with pytest.raises(NoSuchEntry):
        inodes.node_of(dead[0])
    again = inodes.number_of(VmaNode(Identity(2, 0), 0x1000, 0x2000))
    assert again not in dead


def test_the_living_are_counted_once_while_all_of_them_get_their_numbers() -> None:
    living = {Identity(pid, 1) for pid in range(1, 5001)}
    counts = []

    def count() -> set[Identity]:
        counts.append(len(living))
        return living

    inodes = Inodes(count)
    for identity in living:
        inodes.number_of(ProcessNode(identity, Name.PROCESS))
    assert counts == [5000]
    for pid in range(5001, 15_001):
        inodes.number_of(ProcessNode(Identity(pid, 1), Name.PROCESS))
    assert counts == [5000, 5000]


def test_a_vma_with_another_end_is_another_file_and_both_are_found_again() -> None:
    owner = Identity(1, 1)
    inodes = Inodes(lambda: {owner})
    nodes = [VmaNode(owner, start, end) for end in (0x9000, 0x5000, 0x7000) for start in (0x1000, 0x4000)]
    numbers = [inodes.number_of(node) for node in nodes]
    assert len(set(numbers)) == len(nodes)
    assert [inodes.number_of(node) for node in nodes] == numbers
    assert [inodes.node_of(number) for number in numbers] == nodes


def test_above_2_to_the_47_what_the_number_has_no_room_for_counts_too() -> None:
    owner = Identity(1, 1)
    inodes = Inodes(lambda: {owner})
    starts = [0x1000 + (above << 47) for above in range(16)]
    nodes = [VmaNode(owner, start, start + 0x1000) for start in starts]
    numbers = [inodes.number_of(node) for node in nodes]
    assert len(set(numbers)) == len(nodes)
    assert [inodes.node_of(number) for number in numbers] == nodes


LISTED = 3_000


def listed(inodes: Inodes, owner: Identity, first: int, length: int = 1) -> list[int]:
    """The numbers of LISTED VMAs of *length* pages, as in a listing."""
    inodes.expect_vmas(owner, LISTED)
    pages = range(first, first + LISTED * length, length)
    return [
        inodes.number_of(VmaNode(owner, page * PAGE_BYTES, (page + length) * PAGE_BYTES)) for page in pages
    ]


def test_what_is_listed_again_and_again_keeps_its_number() -> None:
    owner = Identity(1, 1)
    inodes = Inodes(lambda: {owner})
    numbers = listed(inodes, owner, 0)
    for round_ in range(1, 20):
        listed(inodes, owner, round_ * LISTED)  # others come and go meanwhile
        assert listed(inodes, owner, 0) == numbers
    assert inodes.node_of(numbers[-1]) == VmaNode(owner, (LISTED - 1) * PAGE_BYTES, LISTED * PAGE_BYTES)


def test_what_is_gone_leads_nowhere_and_its_number_stands_for_nothing_else() -> None:
    owner = Identity(1, 1)
    inodes = Inodes(lambda: {owner})
    seen: dict[int, tuple[int, int]] = {}
    for round_ in range(12):
        length = 1 + round_ % 3  # at the same places, with other lengths
        for index, number in enumerate(listed(inodes, owner, 0, length)):
            place = index * length, length
            assert seen.setdefault(number, place) == place
    for number, (page, length) in seen.items():
        try:
            found = inodes.node_of(number)
        except NoSuchEntry:
            continue
        assert found == VmaNode(owner, page * PAGE_BYTES, (page + length) * PAGE_BYTES)


@pytest.mark.parametrize("moves", [True, False])
def test_a_process_that_maps_at_ever_new_addresses_takes_no_more_room(moves: bool) -> None:
    owner = Identity(1, 1)
    inodes = Inodes(lambda: {owner})
    tracemalloc.start()
    try:
        for round_ in range(40):
            listed(inodes, owner, round_ * LISTED if moves else 0, 1 if moves else round_ + 1)
            # Two tables of twice as many as are listed, and as many more as one listing: an entry takes 36
            # bytes for itself, 40 for its key and up to 70 of the table, and a list of 100 bytes where
            # several share a place.
            assert tracemalloc.get_traced_memory()[0] < 5 * LISTED * 250
    finally:
        tracemalloc.stop()


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_that_ask_at_once_get_the_same_numbers() -> None:
    asked = [ProcessNode(Identity(pid, pid), Name.MEM) for pid in range(1, 1500)]
    alive = {node.owner for node in asked}
    for _ in range(20):
        inodes = Inodes(lambda: alive)
        together = threading.Barrier(4)
        answers: list[list[int]] = []

        def ask(inodes: Inodes, together: threading.Barrier, answers: list[list[int]]) -> None:
            together.wait()
            answers.append([inodes.number_of(node) for node in asked])

        threads = [threading.Thread(target=ask, args=(inodes, together, answers)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 4
        assert all(answer == answers[0] for answer in answers)
        assert [inodes.node_of(number) for number in answers[0]] == asked


@given(st.integers(0, (1 << 64) - 1))
def test_a_number_that_nothing_has_leads_nowhere(number: int) -> None:
    inodes = Inodes(set)
    with pytest.raises(NoSuchEntry):
        inodes.node_of(number << 8 | 0xFF)  # no name has that value
