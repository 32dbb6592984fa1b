"""Errors: the number that a reader sees, and the sentence that a person reads."""

import errno

import pytest

from memfs import errors

NUMBERS = {
    errors.NoSuchEntry: errno.ENOENT,
    errors.TargetExited: errno.ESRCH,
    errors.TargetReplaced: errno.ESTALE,
    errors.RangeUnmapped: errno.EIO,
    errors.AccessDenied: errno.EACCES,
    errors.TargetBusy: errno.EBUSY,
    errors.NoRoom: errno.ENOMEM,
    errors.NameTaken: errno.EEXIST,
    errors.TooMany: errno.ENOSPC,
    errors.CannotFreeze: errno.EIO,
    errors.BadOption: errno.EINVAL,
    errors.CannotCopy: errno.EIO,
    errors.CannotMount: errno.EINVAL,
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_each_error_of_ours_has_its_number(kind: type[errors.MemfsError]) -> None:
    assert errors.errno_of(kind("it failed")) == NUMBERS[kind]


def test_every_error_of_ours_is_in_the_table() -> None:
    assert set(errors.MemfsError.__subclasses__()) == set(NUMBERS)


def test_the_errno_of_the_kernel_is_passed_on_and_all_else_is_an_input_output_error() -> None:
    assert errors.errno_of(OSError(errno.ENXIO, "no more data")) == errno.ENXIO
    assert errors.errno_of(OSError("no number")) == errno.EIO
    assert errors.errno_of(ValueError("a bug")) == errno.EIO


def test_what_the_kernel_said_to_a_freeze_is_passed_on() -> None:
    assert errors.errno_of(errors.CannotFreeze("no more processes", cause=errno.EAGAIN)) == errno.EAGAIN


def test_a_sentence_carries_its_hint_where_there_is_one() -> None:
    assert str(errors.AccessDenied("it may not be read", "be root")) == "it may not be read: be root"
    assert str(errors.TargetExited("it has ended")) == "it has ended"
