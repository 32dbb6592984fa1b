"""The C library's memory: from how many arenas threads are given theirs (mallopt(3))."""

import ctypes

_M_ARENA_MAX = -8  # <malloc.h> of glibc


def use_one_arena() -> None:
    """Have all threads share one arena. Where each has its own, what one of them frees no other one uses.

    The interpreter's lock lets one thread at a time ask for memory anyway. A C library without arenas is
    left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
