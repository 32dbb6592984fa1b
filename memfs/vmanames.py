"""The names of files in ``vmas/``: START-END_PERMS_LABEL, formatted and parsed. Pure.

The mount gives these names, and ``memfs copy``, which is a client of the mount, reads them.
"""

import re

import attrs

from memfs.linux.maps import Access, Mapping, parse_access
from memfs.linux.span import Span

_SAFE = bytes(
    byte if chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in "._+-") else ord("_")
    for byte in range(256)
)
_LABEL_BYTES = 64
_DELETED = b" (deleted)"


def safe_name(name: bytes) -> bytes:
    """Turn *name* into one that needs no quotes in a shell: 64 bytes at most, and never empty."""
    safe = name.translate(_SAFE)[:_LABEL_BYTES] or b"_"
    return safe if safe.strip(b".") else safe.replace(b".", b"_")


def label_of(mapping: Mapping) -> bytes:
    """Return the LABEL in the name of the file of *mapping*: what is mapped, as far as a name can tell."""
    path = mapping.path.removesuffix(_DELETED)
    if not path:
        return b"anon"
    if path.startswith(b"["):  # on shared anonymous memory too, which has a file
        name = path[1:].removesuffix(b"]")
        for prefix in (b"anon:", b"anon_shmem:"):
            if name.startswith(prefix):
                return safe_name(b"anon." + name.removeprefix(prefix))
        return safe_name(name)
    if path.startswith(b"/memfd:"):
        return safe_name(b"memfd." + path.removeprefix(b"/memfd:"))
    if mapping.shared and (path == b"/dev/zero" or path.startswith(b"/SYSV")):
        return b"shm"
    return safe_name(path.rpartition(b"/")[2])


@attrs.frozen
class VmaName:
    """The name of the file of a VMA, taken apart."""

    span: Span
    access: Access
    label: bytes

    def format(self) -> bytes:
        """Return the name."""
        return _format(self.span, self.access, self.label)


def _format(span: Span, access: Access, label: bytes) -> bytes:
    return b"%012x-%012x_%s_%s" % (span.start, span.end, str(access).encode(), label)


def name_of(mapping: Mapping) -> bytes:
    """Return the name of the file of *mapping* in ``vmas/``."""
    return _format(mapping.span, mapping.access, label_of(mapping))


_ADDRESS = rb"([0-9a-f]{12}|[1-9a-f][0-9a-f]{12,15})"
_NAME = re.compile(_ADDRESS + rb"-" + _ADDRESS + rb"_([r-][w-][x-][sp])_([A-Za-z0-9._+-]{1,64})")


def parse_vma_name(name: bytes) -> VmaName | None:
    """Take *name* apart; returns None where it is not what :meth:`VmaName.format` returns for any VMA."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    start, end, letters, label = match.groups()
    return VmaName(Span(int(start, 16), int(end, 16)), parse_access(letters), label)
