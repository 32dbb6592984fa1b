"""What ends with its ``with`` block, whatever happened in it."""

import abc
from types import TracebackType
from typing import Self


class Ending(abc.ABC):
    """Something that must be closed."""

    @abc.abstractmethod
    def close(self) -> None:
        """End it, and all that belongs to it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
