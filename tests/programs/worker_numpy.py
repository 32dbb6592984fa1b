"""A program of ours for numpy: a product of matrices that never change, made again and again.

It prints ``ready``, works until stdin ends, and prints ``ok`` and the number of products, or what is wrong.
"""

import sys
import threading

import numpy

text = numpy.frombuffer(
    " ".join(("the plain text of worker_numpy.py is", "known")).encode() * 1000, numpy.uint8
).copy()
left = numpy.arange(1 << 20, dtype=numpy.int64).reshape(1024, 1024) % 97
large = numpy.ones(16 << 20)
expected = (left @ left[:, :64]).sum()
done = threading.Event()


def wait() -> None:
    """See the end of stdin."""
    sys.stdin.read()
    done.set()


def work() -> int:
    """Multiply until it comes; returns how often."""
    count = 0
    while not done.is_set():
        count += 1
        if (left @ left[:, :64]).sum() != expected or large.sum() != large.size:
            sys.exit("a product is wrong")
    return count


threading.Thread(target=wait, daemon=True).start()
print("ready", flush=True)  # noqa: T201
print("ok", work())  # noqa: T201
