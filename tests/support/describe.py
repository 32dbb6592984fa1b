"""What a holder says about one mapping: a mutable record that becomes one JSON object.

A record keeps two stacks of layers. ``object_layers`` is what the mapped file or shared object holds;
``own_layers`` is what this process wrote over it in private pages. Content is zeros, then the object's
layers, then its own. This file does no I/O and needs the standard library only.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from os import fsdecode


@dataclass(frozen=True)
class Run:
    """The bytes from *start* up to *end*."""

    start: int
    end: int

    def minus(self, other: "Run") -> "list[Run]":
        """What of this run lies outside *other*."""
        parts = Run(self.start, min(self.end, other.start)), Run(max(self.start, other.end), self.end)
        return [part for part in parts if part.start < part.end]


@dataclass(frozen=True)
class Layer:
    """Pattern of *seed* over *run*, whose first byte is the pattern's byte at *origin*."""

    run: Run
    seed: int
    origin: int

    def minus(self, other: Run) -> "list[Layer]":
        """What of this layer lies outside *other*."""
        return [
            replace(self, run=part, origin=self.origin + part.start - self.run.start)
            for part in self.run.minus(other)
        ]


def cut_runs(runs: Iterable[Run], other: Run) -> list[Run]:
    """*runs* without *other*."""
    return [part for run in runs for part in run.minus(other)]


def cut_layers(layers: Iterable[Layer], other: Run) -> list[Layer]:
    """*layers* without *other*."""
    return [part for layer in layers for part in layer.minus(other)]


@dataclass
class Mapping:
    """One mapping that the holder made, as it is now."""

    kind: str
    run: Run
    perms: str
    seed: int
    path: bytes | None = None
    deleted: bool = False
    offset: int = 0
    whole_vma: bool = True
    vma_count: int = 1
    huge_bytes: int = 0
    object_layers: list[Layer] = field(default_factory=list)
    own_layers: list[Layer] = field(default_factory=list)
    touched: list[Run] = field(default_factory=list)
    unreadable: list[Run] = field(default_factory=list)

    @property
    def shared(self) -> bool:
        """Whether writes go to the mapped object."""
        return self.perms[3] == "s"

    def wrote(self, run: Run, seed: int) -> None:
        """Note that this process wrote the pattern of *seed*, by address, over *run*."""
        layers = self.object_layers if self.shared else self.own_layers
        layers.append(Layer(run, seed, run.start))

    def dropped(self, run: Run) -> None:
        """Note that the pages of *run* left the page table, and with them what was private."""
        self.touched = cut_runs(self.touched, run)
        if not self.shared:
            self.own_layers = cut_layers(self.own_layers, run)

    def describe(self) -> dict[str, object]:
        """The JSON object; paths keep odd bytes by surrogateescape."""
        return {
            "kind": self.kind,
            "start": self.run.start,
            "end": self.run.end,
            "perms": self.perms,
            "seed": self.seed,
            "path": None if self.path is None else fsdecode(self.path),
            "deleted": self.deleted,
            "offset": self.offset,
            "whole_vma": self.whole_vma,
            "vma_count": self.vma_count,
            "huge_bytes": self.huge_bytes,
            "layers": [
                [layer.run.start, layer.run.end, layer.seed, layer.origin]
                for layer in (*self.object_layers, *self.own_layers)
            ],
            "touched": [[run.start, run.end] for run in self.touched],
            "unreadable": [[run.start, run.end] for run in self.unreadable],
        }
