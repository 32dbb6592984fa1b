"""What was measured, and what it must show. Values only: nothing here runs anything."""

import enum
import statistics
from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

OURS = "memfs"


@attrs.frozen
class Sample:
    """One run.

    Attributes:
        amount: what was done in that time: bytes, or runs, or reads.
        facts: what else was seen, by name.
    """

    seconds: float
    amount: int = 1
    facts: Mapping[str, int] = attrs.field(factory=dict)

    @property
    def speed(self) -> float:
        """Amount per second."""
        return self.amount / self.seconds


class Unit(enum.Enum):
    """How speeds are shown."""

    RATE = "bytes per second"
    TIME = "seconds"

    def format(self, speed: float) -> str:
        """*speed* for people; a time is that of one run or read."""
        if self is Unit.RATE:
            return f"{speed / 1e9:.2f} GB/s" if speed >= 1e9 else f"{speed / 1e6:.0f} MB/s"
        milliseconds = 1e3 / speed
        if milliseconds >= 1000:
            return f"{milliseconds:.0f} ms"
        return f"{milliseconds:.4f} ms" if milliseconds < 1 else f"{milliseconds:.4g} ms"


@attrs.frozen
class Measured:
    """All samples of one row, by contender, ours first."""

    row: str
    unit: Unit
    samples: Mapping[str, Sequence[Sample]]
    required: Sequence["Requirement"]

    @property
    def peers(self) -> tuple[str, ...]:
        """The contenders but ours."""
        return tuple(self.samples)[1:]

    def speed(self, contender: str) -> float:
        """The median."""
        return statistics.median(sample.speed for sample in self.samples[contender])

    def ratio(self, peer: str) -> float:
        """How many times as fast as *peer* we are."""
        return self.speed(OURS) / self.speed(peer)


@attrs.frozen
class Failed:
    """A row that could not be measured, and why."""

    row: str
    reason: str


Result = Measured | Failed


class Requirement(Protocol):
    """What a row must show."""

    def __str__(self) -> str:
        """In a few words."""

    def met(self, measured: Measured) -> bool:
        """Whether it does."""


@attrs.frozen
class AtLeast:
    """We are at least *ratio* times as fast as *peer*."""

    peer: str
    ratio: float

    def __str__(self) -> str:
        return f"≥ {self.ratio:g} of {self.peer}"

    def met(self, measured: Measured) -> bool:
        """Whether the ratio of the medians is."""
        return measured.ratio(self.peer) >= self.ratio


@attrs.frozen
class AtMost:
    """We take at most *factor* times as long as *peer*."""

    peer: str
    factor: float

    def __str__(self) -> str:
        return f"≤ {self.factor:g} times {self.peer}"

    def met(self, measured: Measured) -> bool:
        """Whether the ratio of the medians says so."""
        return measured.ratio(self.peer) * self.factor >= 1


@attrs.frozen
class Within:
    """One run takes no longer."""

    seconds: float

    def __str__(self) -> str:
        return f"≤ {self.seconds:g} s"

    def met(self, measured: Measured) -> bool:
        """Whether the median is."""
        return 1 / measured.speed(OURS) <= self.seconds


@attrs.frozen
class Exactly:
    """A fact of every one of our samples."""

    fact: str
    value: int

    def __str__(self) -> str:
        return f"{self.fact.replace('_', ' ')} = {self.value:,}"

    def met(self, measured: Measured) -> bool:
        """Whether all samples say so."""
        return all(sample.facts.get(self.fact) == self.value for sample in measured.samples[OURS])
