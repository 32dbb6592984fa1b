"""The checks of ``memfs doctor``: each tries a thing once, by doing it."""

import attrs


@attrs.frozen
class Finding:
    """What came of one check.

    Attributes:
        needed: whether memfs cannot mount without.
        detail: what was seen, or why it does not work.
        cost: what it costs to be without; empty where it works.
        mend: the command or the step that would turn it on; empty where it works.
    """

    name: str
    works: bool
    detail: str
    cost: str = ""
    mend: str = ""
    needed: bool = False

    def as_line(self) -> str:
        """One line for people."""
        line = f"{'ok  ' if self.works else 'no  '} {self.name}: {self.detail}"
        if not self.works:
            line += f"; without it {self.cost}" + (f"; to mend: {self.mend}" if self.mend else "")
        return line

    def as_dict(self) -> dict[str, object]:
        """The same for programs."""
        return attrs.asdict(self)


def run_checks() -> list[Finding]:
    """All checks, in the order in which they matter."""
    return []
