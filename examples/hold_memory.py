"""Hold a text in 256 MiB of heap, on every page of it, until a signal comes.

Usage: python hold_memory.py TEXT

It prints one line once all of it is in memory, and changes nothing after that.
"""

import os
import signal
import sys

TOTAL_BYTES = 256 << 20
# glibc puts blocks of less than 128 KiB on the heap, and larger ones into mappings of their own.
BLOCK_BYTES = 64 << 10


def made_block(text: bytes, number: int) -> bytearray:
    line = b"%s, block %d\n" % (text, number)
    repeats = BLOCK_BYTES // len(line) + 1
    return bytearray((line * repeats)[:BLOCK_BYTES])


def main() -> None:
    text = os.fsencode(sys.argv[1])
    held = [made_block(text, number) for number in range(TOTAL_BYTES // BLOCK_BYTES)]
    print(f"process {os.getpid()} holds {len(held) * BLOCK_BYTES >> 20} MiB", flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
