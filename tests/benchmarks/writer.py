"""A process that holds private memory of 4 KiB pages and writes to it when told.

Usage: writer.py BYTES [VMAS]. It prints where its memory begins; then for each line ``FIRST END STEP`` on
stdin it writes to the bytes of that range and answers with a line. It ends with its stdin. With VMAS the
memory is that many mappings, of which every other one can only be read. Standard library only.
"""

import ctypes
import mmap
import os
import sys


def main() -> None:
    """Hold, obey, end."""
    size = int(sys.argv[1])
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    noise = os.urandom(1 << 20)
    for at in range(0, size, len(noise)):
        memory[at : at + len(noise)] = noise[: size - at]
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    part = size // int(sys.argv[2]) if len(sys.argv) > 2 else size
    for at in range(part, size, 2 * part):
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + at), ctypes.c_size_t(part), mmap.PROT_READ):
            sys.exit("mprotect failed")
    print(start, flush=True)
    for line in sys.stdin:
        for at in range(*map(int, line.split())):
            memory[at] = (memory[at] + 1) & 0xFF
        print("done", flush=True)


if __name__ == "__main__":
    main()
