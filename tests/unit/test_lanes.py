"""Lanes: no target and no user takes the room of another, and whoever waits gets its turn."""

import os

from hypothesis import given
from hypothesis import strategies as st

from memfs.files.lanes import Lane, Lanes, Ticket
from memfs.target.identity import Identity

_GONE = 1 << 22
"""Above every pid: what belongs to no process that runs is one user's."""


def _ticket(unique: int, lane: Lane) -> Ticket:
    return Ticket(unique, 0, lane, b"")


def test_one_target_takes_a_few_places_and_another_still_has_its_own() -> None:
    lanes: Lanes = Lanes()
    one, other = (lanes.lane_of(Identity(_GONE + pid, 0)) for pid in (1, 2))
    entered = [lanes.enter(_ticket(2 * number, one)) for number in range(1, 101)]
    assert entered == [True] * 4 + [False] * 96
    assert lanes.enter(_ticket(1000, other))


def test_one_user_takes_no_place_of_another() -> None:
    lanes: Lanes = Lanes()
    held = [lanes.lane_of(Identity(_GONE + pid, 0)) for pid in range(100)]
    entered = [lanes.enter(_ticket(2 + 2 * number, lane)) for number, lane in enumerate(held)]
    assert entered.count(True) == 64
    mine = lanes.lane_of(Identity(os.getpid(), 0))
    assert not mine.is_delayed
    assert lanes.enter(_ticket(1000, mine))


def test_a_parked_request_can_be_withdrawn_once() -> None:
    lanes: Lanes = Lanes()
    lane = lanes.lane_of(Identity(_GONE, 0))
    for number in range(1, 7):
        lanes.enter(_ticket(number, lane))
    parked = lanes.find(6)
    assert parked is not None
    assert lanes.withdraw(6) is parked
    assert lanes.withdraw(6) is lanes.find(6) is lanes.find(1) is None
    assert [lanes.leave(lane) is not None for _ in range(5)] == [True, False, False, False, False]
    assert not lane.is_delayed


@given(st.lists(st.integers(0, 19), max_size=400))
def test_every_request_runs_in_the_end(order: list[int]) -> None:
    lanes: Lanes = Lanes()
    held = [lanes.lane_of(Identity(_GONE + pid, 0)) for pid in range(20)]
    tickets = [_ticket(2 + 2 * number, held[which]) for number, which in enumerate(order)]
    running = [ticket for ticket in tickets if lanes.enter(ticket)]
    done = []
    while running:
        assert len(running) <= 64
        assert all(sum(t.lane is lane for t in running) <= 4 for lane in held)
        ticket = running.pop(0)
        done.append(ticket)
        following = lanes.leave(ticket.lane)
        if following is not None:
            running.append(following)
    assert sorted(t.unique for t in done) == [t.unique for t in tickets]
    assert not any(lane.is_delayed for lane in held)
