"""The tables of a processor: calls, modes, and the formats of its core files."""

import struct

import pytest

from memfs.linux.arch import Architecture, Call
from memfs.linux.registers import X86Registers
from memfs.linux.x86 import FORMAT_32, FORMAT_64, I386, X86, X86_64

_CODE_64, _CODE_32, _CODE_16 = 0x33, 0x23, 0x07
_EINTR = (1 << 64) - 4
_LOW, _HIGH = 0xFFFF_E000, 0x7FFF_FFFF_E000


@pytest.mark.parametrize("architecture", [X86_64, I386])
def test_each_call_has_a_number_and_its_arguments_come_back(architecture: Architecture) -> None:
    assert architecture.numbers.keys() == set(Call)
    assert len(set(architecture.numbers.values())) == len(Call)
    registers = X86Registers(cs=_CODE_64)
    architecture.prepare(registers, 0x1000, 7, (1, 2, 3, 4, 5, 6))
    assert architecture.arguments(registers) == (1, 2, 3, 4, 5, 6)
    assert (architecture.program_counter(registers), registers.rax) == (0x1000, 7)
    assert architecture.call_number(registers) == -1


def test_a_mode_is_told_by_the_code_segment() -> None:
    found = [X86.architecture_of(X86Registers(cs=selector)) for selector in (_CODE_64, _CODE_32, _CODE_16)]
    assert found == [X86_64, I386, None]


@pytest.mark.parametrize(
    ("architecture", "number", "first", "again"),
    [
        (X86_64, 232, 0, True),  # epoll_wait
        (X86_64, 102, 10, False),  # getuid
        (I386, 256, 0, True),  # epoll_wait
        (I386, 102, 10, True),  # socketcall, recv
        (I386, 102, 3, False),  # socketcall, connect: it has begun
        (I386, 117, 4, True),  # ipc, semtimedop
        (I386, 117, 12, False),  # ipc, msgrcv
    ],
)
def test_a_call_that_has_done_nothing_can_be_entered_again(
    architecture: Architecture, number: int, first: int, again: bool
) -> None:
    registers = X86Registers(rax=_EINTR, orig_rax=number, rbx=first, rdi=first, rip=0x1000)
    assert architecture.was_cut_short(registers) is again
    architecture.rewind(registers)
    assert (registers.rax, registers.rip) == (number, 0x1000 - len(architecture.call_instruction))


def test_the_format_of_a_core_goes_by_the_words_that_exec_told_the_program() -> None:
    auxv_64 = struct.pack("<4Q", 6, 4096, 0, 0)
    auxv_32 = struct.pack("<8I", 6, 4096, 11, 1000, 0, 0, 0, 0)
    thread_64, thread_32 = X86Registers(cs=_CODE_64), X86Registers(cs=_CODE_32)
    assert X86.format_of(auxv_64, thread_64, _HIGH) is FORMAT_64
    assert X86.format_of(auxv_64, thread_32, _HIGH) is FORMAT_64
    assert X86.format_of(auxv_32, thread_32, _LOW) is FORMAT_32
    assert X86.format_of(auxv_32, thread_64, _LOW) is None  # x32
    assert X86.format_of(auxv_32, thread_32, _HIGH) is FORMAT_64  # it says so, but it cannot be
    assert X86.format_of(b"", thread_64, _HIGH) is FORMAT_64
