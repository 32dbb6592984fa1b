"""mountinfo: every line the kernel prints is a mount, whatever its path and its source."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from memfs.linux.mountinfo import Mount, mount_by_id, mount_id_of, mount_on, parse_mountinfo, resolve

_NAMES = st.binary(max_size=30).map(lambda name: name.replace(b"\0", b"0"))


def escape(name: bytes) -> bytes:
    """As ``mangle`` of fs/proc_namespace.c: blank, tab, newline and backslash, and nothing else."""
    for byte in b"\\ \t\n":
        name = name.replace(bytes((byte,)), b"\\%03o" % byte)
    return name


def mountinfo_line(mount: Mount, tags: bytes = b"") -> bytes:
    """One line, with *tags* (``shared:1 master:2``) in the optional fields."""
    owner = b"" if mount.owner is None else b",user_id=%d,group_id=0" % mount.owner
    head = b"%d %d %d:%d / %s rw,relatime " % (
        mount.id, mount.parent, *mount.device, escape(mount.mountpoint)
    )  # fmt: skip
    return head + tags + b"- %s %s rw%s\n" % (mount.fs_type, escape(mount.source), owner)


@given(
    st.lists(
        st.tuples(
            st.builds(
                Mount,
                id=st.integers(1, (1 << 31) - 1),
                parent=st.integers(1, (1 << 31) - 1),
                mountpoint=_NAMES.map(lambda name: b"/" + name),
                fs_type=st.sampled_from([b"ext4", b"fuse.memfs", b"tmpfs"]),
                source=_NAMES,
                owner=st.none() | st.integers(0, (1 << 32) - 2),
                device=st.tuples(st.integers(0, 4095), st.integers(0, (1 << 20) - 1)),
            ),
            st.sampled_from([b"", b"shared:1 ", b"shared:1 master:2 ", b"unbindable "]),
        ),
        max_size=4,
    )
)
@example([(Mount(2, 1, b"/mnt", b"tmpfs", b"", None, (0, 41)), b"")])
@example([(Mount(67, 45, b"/mnt/a\rb", b"fuse.memfs", b"memfs", 0, (0, 42)), b"shared:1 ")])
def test_parsing_what_was_printed_gives_back_every_mount(printed: list[tuple[Mount, bytes]]) -> None:
    text = b"".join(mountinfo_line(mount, tags) for mount, tags in printed)
    assert parse_mountinfo(text) == [mount for mount, _ in printed]


def test_proc_is_mounted_on_proc_and_nothing_below_it() -> None:
    found = mount_on("/proc")
    assert found is not None
    assert (found.mountpoint, found.fs_type) == (b"/proc", b"proc")
    assert mount_on("/proc/self") is None


def test_a_descriptor_tells_its_mount() -> None:
    descriptor = os.open("/proc/self", os.O_PATH)
    try:
        found = mount_by_id(mount_id_of(descriptor))
    finally:
        os.close(descriptor)
    assert found is not None
    assert found == mount_on("/proc")
    assert mount_by_id(0) is None


def test_a_path_is_resolved_as_the_system_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("deep/er")
    (tmp_path / "far").symlink_to(tmp_path / "link")
    (tmp_path / "deep" / "up").symlink_to("../link/..")
    monkeypatch.chdir(tmp_path / "deep")
    for path in (
        ".", "..", "/", "//", "", "er/", "../link", "../link/..", "../far/../up/er", "up", "missing/name",
        "../file/below", f"{tmp_path}/./far", "/..",
    ):  # fmt: skip
        assert resolve(path, b"none") == os.path.realpath(path)


def test_links_without_an_end_are_given_up(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert resolve(tmp_path / "loop", b"none") == str(tmp_path / "loop")


def test_behind_a_mount_that_is_not_to_be_asked_names_stay_as_they_are() -> None:
    assert resolve("/proc/self/exe", b"proc") == "/proc/self/exe"
    assert resolve("/proc/self/../../tmp", b"proc") == "/tmp"
