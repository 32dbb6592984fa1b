"""Answers that took long to find, given again for a while; and no two threads look for the same one.

What the kernel must walk page tables for takes milliseconds for each GiB, and is asked several times for
each file that is opened: by each of its readers, who may all come at once.
"""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key")
Answer = TypeVar("Answer")

_SHARE = 20
"""An answer is kept for so many times as long as it took: 5 % of the time goes into finding at most."""


def _any(_: object) -> bool:
    return True


class Kept(Generic[Key, Answer]):
    """What was found, by what it is the answer to."""

    def __init__(self, long_s: float = 0.0, *, least_s: float = 0.0) -> None:
        """What takes less than *long_s* seconds is found anew for each who asks.

        An answer that is kept is so for *least_s* seconds, however quickly it was found.
        """
        self._long_s = long_s
        self._least_s = least_s
        self._lock = threading.Lock()
        self._answers: dict[Key, tuple[float, Answer]] = {}
        self._coming: dict[Key, Future[Answer]] = {}

    def get(self, key: Key, find: Callable[[], Answer], suits: Callable[[Answer], bool] = _any) -> Answer:
        """The answer to *key*: a kept one, or one that is just being found, where it *suits*; or *find*'s.

        Raises:
            Exception: what *find* raises, to all who waited for it.
        """
        while True:
            with self._lock:
                expires, *kept = self._answers.get(key, (0.0,))
                if kept and time.monotonic() < expires and (expires == math.inf or suits(kept[0])):
                    return kept[0]
                coming = self._coming.get(key)
                if coming is None:
                    mine = self._coming[key] = Future[Answer]()
                    break
            answer = coming.result()
            if suits(answer):
                return answer
        return self._find(key, find, mine)

    def peek(self, key: Key) -> Answer | None:
        """A kept answer to *key*, at once; None where one has to be found."""
        expires, *kept = self._answers.get(key, (0.0,))
        return kept[0] if kept and time.monotonic() < expires else None

    def pin(self, key: Key, answer: Answer) -> None:
        """From now on this is the answer to *key*, whatever it should suit."""
        with self._lock:
            self._answers[key] = math.inf, answer

    def _find(self, key: Key, find: Callable[[], Answer], mine: Future[Answer]) -> Answer:
        began = time.monotonic()
        try:
            answer = find()
        except BaseException as error:
            with self._lock:
                del self._coming[key]
            mine.set_exception(error)
            raise
        now = time.monotonic()
        with self._lock:
            del self._coming[key]
            for old in [key for key, (expires, _) in self._answers.items() if expires < now]:
                del self._answers[old]
            pinned = self._answers.get(key, (0.0,))[0] == math.inf
            if now - began >= self._long_s and not pinned:
                self._answers[key] = now + max(self._least_s, _SHARE * (now - began)), answer
        mine.set_result(answer)
        return answer
