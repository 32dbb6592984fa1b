"""What a snapshot lacks of the memory of its process, in words. Pure: it reads nothing."""

from collections import Counter
from collections.abc import Iterable

import attrs

from memfs.snapshot.values import Part
from memfs.target.layout import Kind


@attrs.frozen
class Missing:
    """VMAs that the process can read and that are not in its snapshot, for one reason."""

    reason: str
    vmas: int
    size_bytes: int


def find_missing(parts: Iterable[Part]) -> tuple[Missing, ...]:
    """What is missing of *parts*, the most first."""
    vmas: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for part in parts:
        if part.region.kind is Kind.ABSENT:
            vmas[part.reason] += 1
            sizes[part.reason] += part.region.span.size
    return tuple(Missing(reason, vmas[reason], size) for reason, size in sizes.most_common())
