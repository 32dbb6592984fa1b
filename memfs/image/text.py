"""A file of made-up bytes: the text of maps, say, as it was when the file was opened."""

import os

from memfs.errors import RangeUnmapped
from memfs.image.source import Piece, Source, Workspace
from memfs.linux.span import Span


class Text(Source):
    """Bytes that never change, kept in a memfd so that they go the way of all pages."""

    def __init__(self, content: bytes) -> None:
        self.size_bytes = len(content)
        self.has_cached_pages = True
        self._fd = os.memfd_create("memfs-text", os.MFD_CLOEXEC)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(self._fd, view) :]
        except BaseException:
            self.close()
            raise

    def pieces(self, span: Span, workspace: Workspace) -> list[Piece]:
        return [Piece(span.size, self._fd, span.start, cached=True)] if span else []

    def still_true(self, span: Span, pieces: list[Piece]) -> bool:
        return True

    def recover(self, offset: int, piece: Piece, view: memoryview) -> int:
        raise RangeUnmapped(f"the text ends before byte {offset}")

    def next_data(self, offset: int, workspace: Workspace) -> int:
        return offset

    def next_hole(self, offset: int, workspace: Workspace) -> int:
        return self.size_bytes

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
