"""What differs from one processor to the next, and from one of its modes to another, when a thread is
looked at or made to run a system call: one :class:`Architecture` each.

Everything else in memfs that touches registers goes through one. :mod:`memfs.linux.x86` has those of x86;
another processor needs a module like it, an entry in :mod:`memfs.linux.machine`, and nothing more.
"""

import enum
from collections.abc import Callable, Sequence
from collections.abc import Mapping as ReadOnlyDict

import attrs

from memfs.linux.registers import Registers

_EINTR = -4


class Call(enum.Enum):
    """The system calls that a stopped thread is made to run."""

    CHDIR = enum.auto()
    CLONE = enum.auto()
    CLOSE_RANGE = enum.auto()
    MADVISE = enum.auto()
    MMAP = enum.auto()
    PRCTL = enum.auto()
    SETSID = enum.auto()
    SHMDT = enum.auto()
    USERFAULTFD = enum.auto()
    WAIT4 = enum.auto()


@attrs.frozen
class RegisterSet:
    """A set of registers that a core file has of a thread, in a note of its own.

    Attributes:
        kind: ``NT_*`` (``<linux/elf.h>``), which ptrace(2) knows it by too.
        owner: the name of the note.
        size_bytes: of the set where it has always the same size; 0 where not. A thread in another mode may
            have another set of that kind.
        rare: hardly any thread has it; one that has was cloned from one that had.
    """

    kind: int
    owner: bytes
    size_bytes: int = 0
    rare: bool = False


@attrs.frozen
class CoreFormat:
    """How Linux writes the core file of a program of some kind, core(5).

    Attributes:
        word_bytes: the size of its longs: 8 or 4, which is ELFCLASS64 or ELFCLASS32.
        machine: ``EM_*`` (``<linux/elf-em.h>``).
        id_bytes: the size of a user id in its ``struct elf_prpsinfo``.
        general: the general registers of a thread as its ``struct elf_prstatus`` has them.
        sets: what else there is of each thread, in the order of its notes.
        floating: the kind of the one that ``pr_fpvalid`` is about.
        extra: a note about all threads, from what they have of *sets*: its kind, owner and contents.
    """

    word_bytes: int
    machine: int
    id_bytes: int
    general: Callable[[bytes], bytes]
    sets: tuple[RegisterSet, ...]
    floating: int
    extra: Callable[[ReadOnlyDict[int, bytes]], tuple[int, bytes, bytes] | None]


@attrs.frozen
class Architecture:
    """One mode of a processor.

    Attributes:
        machine: its AUDIT_ARCH_* (``<linux/audit.h>``): how its system calls are entered.
        reach: the end of the addresses at which a thread in this mode can run code.
        call_instruction: the bytes of the instruction that enters the kernel.
        numbers: of the system calls.
        resumable: numbers of the calls that fail with EINTR when a thread was stopped and no signal
            came (signal(7), "Interruption of system calls … by stop signals"), have done nothing by
            then, and so can be entered again. Others the kernel enters again by itself.
        multiplexed: of the calls that stand for several, by their number, which of those are resumable: the
            first argument says which one it is.
        is_mode_of: whether the registers are those of a thread in this mode.
        prepare: set the registers up for a call, given the address of a call instruction, the number
            and up to six arguments. The kernel must not take it for one that it should restart.
        arguments: the six that a call would have with these registers.
        cancel: turn a call whose entry the thread stands at into none; it returns ENOSYS.
        result: what a call returned, an errno as a negative number.
        call_number: of the call that the thread was in when it was stopped; -1 for none.
        rewind: back to the instruction by which the thread entered the call.
        program_counter, jump: where the thread is, and to set it elsewhere.
    """

    machine: int
    reach: int
    call_instruction: bytes
    numbers: dict[Call, int]
    resumable: frozenset[int]
    multiplexed: dict[int, frozenset[int]]
    is_mode_of: Callable[[Registers], bool]
    prepare: Callable[[Registers, int, int, Sequence[int]], None]
    arguments: Callable[[Registers], tuple[int, ...]]
    cancel: Callable[[Registers], None]
    result: Callable[[Registers], int]
    call_number: Callable[[Registers], int]
    rewind: Callable[[Registers], None]
    program_counter: Callable[[Registers], int]
    jump: Callable[[Registers, int], None]

    def was_cut_short(self, registers: Registers) -> bool:
        """Whether the thread is about to see EINTR from a call that can as well be entered again."""
        number = self.call_number(registers)
        again = number in self.resumable or self.arguments(registers)[0] in self.multiplexed.get(number, ())
        return self.result(registers) == _EINTR and again


@attrs.frozen
class Machine:
    """A processor that memfs knows.

    Attributes:
        registers: the layout of the general registers, in whatever mode.
        architectures: its modes, in which a thread can be made to run calls, the best first.
        format_of: that of core files, given the auxiliary vector of the program, the registers of a thread
            and the end of what is mapped; None for a kind that memfs does not know.
    """

    registers: type[Registers]
    architectures: tuple[Architecture, ...]
    format_of: Callable[[bytes, Registers, int], CoreFormat | None]

    def architecture_of(self, registers: Registers) -> Architecture | None:
        """The mode that a thread with these registers is in; None where it is none of these."""
        return next((mode for mode in self.architectures if mode.is_mode_of(registers)), None)
