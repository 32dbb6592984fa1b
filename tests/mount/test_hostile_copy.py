"""``memfs copy`` by root into directories of everyone, in which a plain user was first: nothing to gain."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount.mounted import MEMFS, MIB, Mount, check, complaint, mounted, run
from mount.test_copy import left_in
from mount.test_since import take
from support.compiled import build
from support.pattern import PAGE
from support.target import Target

from memfs.copy.imagedir import list_items
from memfs.copy.place import find_place
from memfs.copy.sourcefile import open_source
from memfs.errors import CannotCopy
from memfs.linux.folder import Folder

USER = 65534
OTHER = 65533
SWAPS = 50

STICKY, SHARED, PRIVATE = 0o1777, 0o777, 0o755


@contextlib.contextmanager
def directory(mode: int) -> Iterator[Path]:
    """A directory of root's that everybody can reach."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(mode)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def sticky() -> Iterator[Path]:
    """A directory as /tmp is."""
    with directory(STICKY) as path:
        yield path


@pytest.fixture(params=[STICKY, SHARED], ids=["sticky", "shared"])
def everyones(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory that everybody may write to."""
    with directory(request.param) as path:
        yield path


@pytest.fixture
def private() -> Iterator[Path]:
    """A directory that everybody may look into, and only root may write to."""
    with directory(PRIVATE) as path:
        yield path


@pytest.fixture
def ramfs(sticky: Path) -> Iterator[Path]:
    """A sticky directory on a file system without extended attributes and without O_TMPFILE."""
    check("mount", "-t", "ramfs", "ramfs", sticky)
    sticky.chmod(STICKY)
    try:
        yield sticky
    finally:
        check("umount", sticky)


@pytest.fixture(scope="module")
def memfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all, since none of what happens here concerns it."""
    with mounted(tmp_path_factory.mktemp("mount"), limit_seconds=300) as mount:
        yield mount


@pytest.fixture
def source(memfs: Mount, holder: Target) -> Path:
    """A file in the mount."""
    return memfs.vma(holder.pid, holder.mapping("private-runs"))


def as_user(*argv: str | Path, user: int = USER) -> None:
    """Have a plain user run a program, with status 0."""
    check(*argv, user=user)


def is_copy(path: Path, source: Path) -> bool:
    """Whether *path* is a file of root's, for root only, with the bytes of *source*."""
    found = path.lstat()
    return (found.st_uid, stat.S_IMODE(found.st_mode), path.read_bytes()) == (0, 0o600, source.read_bytes())


# Swapped while it is looked at


def victims(private: Path) -> Path:
    """A directory of root's with files in it."""
    victim = private / "victim"
    victim.mkdir()
    for number in range(8):
        (victim / f"file{number}").write_text("root's")
    return victim


@contextlib.contextmanager
def swapper(bait: Path, victim: Path) -> Iterator[None]:
    """A user's program that swaps directories for symbolic links meanwhile."""
    argv = ["nice", build("swapper"), bait, victim]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, user=USER, group=USER, extra_groups=[]) as program:
        assert program.stdout is not None
        try:
            assert program.stdout.readline() == b"\n"
            yield
            assert program.poll() is None
        finally:
            program.kill()


def test_a_leftover_that_is_swapped_for_a_symlink_leads_to_no_file_of_roots(
    source: Path, sticky: Path, private: Path
) -> None:
    victim = victims(private)
    names = os.listdir(victim)
    with swapper(sticky / ".image.memfs-new-0123abcd", victim):
        for _ in range(SWAPS):
            check(MEMFS, "copy", source, sticky / "image")
            assert sorted(os.listdir(victim)) == sorted(names)
    assert is_copy(sticky / "image", source)


def test_what_is_swapped_while_it_is_removed_leads_to_no_file_of_roots(sticky: Path, private: Path) -> None:
    victim = victims(private)
    with Folder.open(str(sticky)) as folder, swapper(sticky / "bait", victim):
        for _ in range(10 * SWAPS):
            with contextlib.suppress(OSError):  # the user was faster
                folder.at("bait").remove()
            assert len(os.listdir(victim)) == 8


# Directories


def acl_for(user: int, rights: int) -> bytes:
    """An ACL that gives *user* some rights; the layout is in <linux/posix_acl_xattr.h>."""
    entries = ((0x01, 7, -1), (0x02, rights, user), (0x04, 5, -1), (0x10, rights | 5, -1), (0x20, 5, -1))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


@pytest.mark.parametrize(
    ("owner", "group", "mode", "acl", "is_private"),
    [
        (0, 0, 0o775, None, True),  # a group that has no one but root in it
        (0, USER, 0o755, None, True),
        (0, USER, 0o775, None, False),
        (0, 0, 0o755, 7, False),
        (0, 0, 0o755, 5, True),
        (USER, USER, 0o755, None, False),
        (USER, USER, 0o1777, None, False),
    ],
)
def test_whoever_else_may_write_to_a_directory_is_seen(
    private: Path, owner: int, group: int, mode: int, acl: int | None, is_private: bool
) -> None:
    os.chown(private, owner, group)
    private.chmod(mode)
    if acl is not None:
        os.setxattr(private, "system.posix_acl_access", acl_for(USER, acl))
    with Folder.open(str(private)) as folder:
        assert folder.is_private == is_private
        assert not folder.is_sticky


# Destinations


@pytest.mark.parametrize("leads_to", ["victim", "nothing"])
def test_a_users_symlink_is_not_followed(source: Path, everyones: Path, private: Path, leads_to: str) -> None:
    (private / "victim").write_text("root's")
    link = everyones / "image"
    as_user("ln", "-s", private / leads_to, link)
    said = complaint(run(MEMFS, "copy", source, link), 1)
    assert f"{link} is a symbolic link of uid {USER}" in said
    assert left_in(private) == {"victim"}
    assert (private / "victim").read_text() == "root's"
    assert left_in(everyones) == {"image"}


def test_a_symlink_of_ones_own_is_followed(source: Path, sticky: Path, private: Path) -> None:
    for where in (sticky, private):
        (where / "link").symlink_to("image")
        for _ in range(2):
            check(MEMFS, "copy", source, where / "link")
            assert (where / "link").is_symlink()
            assert is_copy(where / "image", source)


def test_a_chain_of_symlinks_is_followed_no_further_than_its_first_hostile_part(
    source: Path, sticky: Path, private: Path
) -> None:
    as_user("ln", "-s", private / "victim", sticky / "hop")
    (private / "link").symlink_to(sticky / "hop")
    assert f"{sticky}/hop is a symbolic link" in complaint(run(MEMFS, "copy", source, private / "link"), 1)
    assert left_in(private) == {"link"}


def test_roots_link_in_a_directory_where_anyone_can_rename_it_is_not_followed(source: Path) -> None:
    with directory(SHARED) as shared:
        (shared / "link").symlink_to("image")
        assert "is a symbolic link of uid 0" in complaint(run(MEMFS, "copy", source, shared / "link"), 1)
        assert left_in(shared) == {"link"}


def test_a_file_of_another_user_gets_no_image(source: Path, everyones: Path) -> None:
    image = everyones / "image"
    as_user("sh", "-c", f"echo mine > {image}; chmod 666 {image}")
    assert f"{image} belongs to uid {USER}" in complaint(run(MEMFS, "copy", source, image), 1)
    assert image.read_text() == "mine\n"
    assert left_in(everyones) == {"image"}


def test_a_users_own_directory_is_one_that_others_may_write_to(source: Path, private: Path) -> None:
    home = private / "home"
    home.mkdir()
    os.chown(home, USER, USER)
    as_user("touch", home / "file")
    assert "belongs to uid" in complaint(run(MEMFS, "copy", source, home / "file"), 1)
    for _ in range(2):
        check(MEMFS, "copy", source, home / "new")
        assert is_copy(home / "new", source)


def test_an_image_that_everyone_may_replace_is_for_its_owner_only(source: Path, everyones: Path) -> None:
    image = everyones / "image"
    image.touch(mode=0o644)
    check(MEMFS, "copy", source, image)
    assert is_copy(image, source)


def test_in_a_directory_of_ones_own_a_file_keeps_its_owner_and_its_mode(source: Path, private: Path) -> None:
    image = private / "image"
    image.touch()
    image.chmod(0o640)
    os.chown(image, USER, OTHER)
    check(MEMFS, "copy", source, image)
    found = image.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (USER, OTHER, 0o640)
    assert image.read_bytes() == source.read_bytes()


def test_a_fifo_of_another_user_is_no_stream(source: Path, everyones: Path) -> None:
    as_user("mkfifo", everyones / "image")
    said = complaint(run(MEMFS, "copy", source, everyones / "image"), 1)
    assert f"{everyones}/image belongs to uid {USER}" in said


def test_a_socket_of_another_user_gets_nothing(source: Path, sticky: Path) -> None:
    path = sticky / "image"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        os.chown(path, USER, USER)
        server.listen()
        server.setblocking(False)
        assert f"{path} belongs to uid {USER}" in complaint(run(MEMFS, "copy", source, path), 1)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_fifo_of_ones_own_is_a_stream_wherever_it_is(source: Path, sticky: Path, private: Path) -> None:
    for where in (sticky, private):
        os.mkfifo(where / "fifo")
        command = f'"$0" copy "$1" {where}/fifo & cat {where}/fifo; wait $!'
        assert check("sh", "-c", command, MEMFS, source) == source.read_bytes()


def test_what_the_shell_opened_is_a_stream(source: Path, private: Path) -> None:
    content = source.read_bytes()
    assert check("bash", "-c", '"$0" copy "$1" /dev/stdout | cat', MEMFS, source) == content
    assert check("bash", "-c", '"$0" copy "$1" >(cat) | cat', MEMFS, source) == content
    assert check(MEMFS, "copy", source, "/dev/null") == b""
    (private / "null").symlink_to("/dev/null")
    assert check(MEMFS, "copy", source, private / "null") == b""


@pytest.mark.parametrize("form", ["here", "./", "../here", "./here/."])
def test_a_directory_has_many_names(source: Path, private: Path, form: str) -> None:
    (private / "here").mkdir()
    at = private if form in ("here", "./here/.") else private / "here"
    check("sh", "-c", 'cd "$2" && "$0" copy "$1" "$3"', MEMFS, source, at, form)
    assert is_copy(private / "here" / source.name, source)


# Leftovers


def test_what_another_user_left_stays_and_stops_no_copy(source: Path, everyones: Path) -> None:
    prefix = f"{everyones}/.image.memfs-new-"
    plant = (
        f"echo mine > {prefix}1; mkfifo {prefix}2; mkdir {prefix}3; touch {prefix}3/file; ln -s / {prefix}4"
    )
    as_user("sh", "-c", plant)
    check(MEMFS, "copy", source, everyones / "image")
    assert is_copy(everyones / "image", source)
    assert left_in(everyones) == {"image", *(f".image.memfs-new-{number}" for number in range(1, 5))}
    assert left_in(Path(f"{prefix}3")) == {"file"}


def leave(where: Path) -> None:
    """Leave what killed copies of root's leave."""
    (where / ".image.memfs-new-0a").touch(mode=0o600)
    (where / ".image.memfs-new-0b").mkdir(mode=0o700)
    (where / ".image.memfs-new-0b" / "vmas").mkdir(mode=0o700)
    (where / ".image.memfs-new-0b" / "vmas" / "file").touch(mode=0o600)
    (where / ".image.memfs-new-0b" / "stack").symlink_to("vmas/file")


def test_what_ones_own_copies_left_is_cleared(source: Path, sticky: Path, private: Path) -> None:
    for where in (sticky, private):
        leave(where)
        check(MEMFS, "copy", source, where / "image")
        assert left_in(where) == {"image"}


def test_what_a_user_moved_to_the_name_of_a_leftover_stays(source: Path) -> None:
    with directory(SHARED) as shared:
        (shared / "roots").mkdir(mode=0o700)
        (shared / "roots" / "precious").touch()
        as_user("mv", shared / "roots", shared / ".image.memfs-new-0a")
        check(MEMFS, "copy", source, shared / "image")
        assert left_in(shared / ".image.memfs-new-0a") == {"precious"}


# Journals


def test_a_fifo_or_a_symlink_is_no_journal(source: Path, everyones: Path, private: Path) -> None:
    journal = everyones / ".image.memfs-journal"
    (private / "victim").touch()
    for command in (("mkfifo", journal), ("ln", "-s", private / "victim", journal)):
        as_user(*command)
        said = complaint(run(MEMFS, "copy", source, everyones / "image"), 1)
        assert f"{journal} is no journal" in said
        assert left_in(everyones) == {journal.name}
        journal.unlink()


def test_a_lock_on_a_planted_journal_is_not_waited_for(source: Path, everyones: Path) -> None:
    journal = everyones / ".image.memfs-journal"
    as_user("touch", journal)
    with journal.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        said = complaint(run(MEMFS, "copy", source, everyones / "image"), 1)
    assert f"was written by uid {USER}" in said


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [(STICKY, "is no journal"), (PRIVATE, "cannot be finished")],
    ids=["sticky", "private"],
)
def test_a_lock_that_another_user_can_hold_is_not_waited_for(
    source: Path, private: Path, mode: int, sentence: str
) -> None:
    private.chmod(mode)
    journal = private / ".image.memfs-journal"
    journal.touch()
    journal.chmod(0o644)
    hold = subprocess.Popen(
        ["flock", "--exclusive", journal, "sh", "-c", "echo; read line"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=USER, group=USER, extra_groups=[],
    )  # fmt: skip
    with hold:
        assert hold.stdout is not None
        assert hold.stdout.readline() == b"\n"
        assert sentence in complaint(run(MEMFS, "copy", source, private / "image"), 1)
        hold.communicate()


# Marks


def test_a_users_symlink_does_not_become_the_mark(memfs: Mount, ramfs: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("root's")
    with Target("private-full", directory=tmp_path) as target:
        name = f"vmas/{memfs.vma(target.pid, target.mapping('private-full')).name}"
        one = take(memfs, target.pid, "one")
        for planted in (".image.memfs-image.new", ".image.memfs-image"):
            as_user("ln", "-s", victim, ramfs / planted)
        check(MEMFS, "copy", one / name, ramfs / "image")
        assert victim.read_text() == "root's"
        assert not (ramfs / ".image.memfs-image").is_symlink()
        target.write(target.mapping("private-full").start, PAGE, 9)
        two = take(memfs, target.pid, "two")
        check(MEMFS, "copy", "--since", "one", two / name, ramfs / "image")
        assert is_copy(ramfs / "image", two / name)


@pytest.mark.parametrize("planted", ["file", "fifo", "link"])
def test_a_mark_that_a_user_planted_is_not_believed(
    memfs: Mount, ramfs: Path, tmp_path: Path, planted: str
) -> None:
    image, mark = ramfs / "image", ramfs / ".image.memfs-image"
    with Target("private-full", directory=tmp_path) as target:
        source = memfs.vma(target.pid, target.mapping("private-full"))
        name = f"vmas/{source.name}"
        check(MEMFS, "copy", source, image)  # live, so it has no mark
        one = take(memfs, target.pid, "one")
        two = take(memfs, target.pid, "two")
        found = image.stat()
        text = json.dumps({
            "snapshot": os.getxattr(one, "user.memfs.snapshot").decode(),
            "part": f"vmas/{source.name.partition('-')[0]}",
            "files": {"": [found.st_size, found.st_mtime_ns]},
        })  # fmt: skip
        if planted == "fifo":
            as_user("mkfifo", mark)
        else:
            path = mark if planted == "file" else ramfs / "elsewhere"
            as_user("sh", "-c", f"printf %s '{text}' > {path}")
            if planted == "link":
                as_user("ln", "-s", path, mark)
        done = run(MEMFS, "copy", "--since", "one", two / name, image)
        assert "does not say of which snapshot" in complaint(done, 1)


# Images of directories


def test_a_directory_that_a_user_put_in_the_place_of_an_image_is_not_written_to(
    memfs: Mount, private: Path, tmp_path: Path
) -> None:
    victim = private / "vmas"
    with directory(SHARED) as shared, Target("private-full", directory=tmp_path, size=4 * MIB) as target:
        image = shared / "image"
        name = memfs.vma(target.pid, target.mapping("private-full")).name
        one = take(memfs, target.pid, "one")
        check(MEMFS, "copy", one, image)
        target.write(target.mapping("private-full").start, PAGE, 9)
        two = take(memfs, target.pid, "two")

        # The user knows the image, its mark, and its times.
        shutil.copytree(image / "vmas", victim)
        before = (victim / name).read_bytes()
        as_user("mv", image, shared / "away")
        shutil.copytree(shared / "away", image, symlinks=True)
        shutil.rmtree(image / "vmas")
        (image / "vmas").symlink_to(victim)
        check("chown", "-hR", f"{USER}:{USER}", image)

        for options in (("--since", "one"), ()):
            said = complaint(run(MEMFS, "copy", *options, two, image), 1)
            assert f"{image} belongs to uid {USER}" in said
        assert (victim / name).read_bytes() == before
        assert (image / "vmas").is_symlink()
        assert left_in(shared) == {"image", "away"}


def test_an_image_that_a_user_may_write_into_is_not_updated(
    memfs: Mount, private: Path, tmp_path: Path
) -> None:
    """Root gave it away. A copy takes its place; what is in it is removed, and nothing that it leads to.

    Whether all of it can be removed depends on how fast the user puts more there.
    """
    image, victim = private / "image", victims(private)
    with Target("private-full", directory=tmp_path, size=4 * MIB) as target:
        one = take(memfs, target.pid, "one")
        check(MEMFS, "copy", one, image)
        check("chown", "-hR", f"{USER}:{USER}", image)
        target.write(target.mapping("private-full").start, PAGE, 9)
        two = take(memfs, target.pid, "two")
        said = complaint(run(MEMFS, "copy", "--since", "one", two, image), 1)
        assert "others may write to" in said
        with swapper(image / "vmas", victim):
            done = run(MEMFS, "copy", two, image)
        assert done.returncode == 0 or "what it replaces cannot be removed" in complaint(done, 1)
        assert len(os.listdir(victim)) == 8
        check(MEMFS, "copy", two, image)
        assert left_in(private) == {"image", "victim"}
        assert (image.stat().st_uid, stat.S_IMODE(image.stat().st_mode)) == (0, 0o700)


# Mounts


@pytest.mark.parametrize("planted", ["link", "fifo", "directory"])
def test_a_mount_that_is_moved_away_meanwhile_is_not_replaced_by_another_tree(
    holder: Target, tmp_path: Path, private: Path, planted: str
) -> None:
    """It lies below a directory of a user's, who moves that, and puts in its place what looks like it."""
    (private / "victim").write_text("root's")
    below, away = tmp_path / "below", tmp_path / "away"
    below.mkdir()
    with mounted(below) as memfs:
        file = find_place(str(memfs.vma(holder.pid, holder.mapping("private-runs"))))
        process = find_place(str(memfs.process(holder.pid)))
        below.rename(away)
        try:
            file.path.parent.mkdir(parents=True)
            if planted == "link":
                file.path.symlink_to(private / "victim")
            elif planted == "fifo":
                os.mkfifo(file.path)
            with pytest.raises(CannotCopy, match="does not lead into the mount"):
                list_items(process) if planted == "directory" else open_source(file.path, file.device)
        finally:
            shutil.rmtree(below)
            away.rename(below)


def test_a_mount_of_another_user_is_not_asked(
    source: Path, memfs: Mount, holder: Target, private: Path
) -> None:
    """It is the newest, everybody may enter it, and whoever asks it waits for ever: no one serves it."""
    hostile, image = private / "mnt", private / "image"
    hostile.mkdir()
    short = f"{holder.pid}/vmas/{source.name}"
    device = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={device},rootmode=40000,user_id={USER},group_id={USER},allow_other"
        script = f'mount -i -t fuse.memfs -o {options} memfs {hostile} && exec "$@"'
        inside = ("unshare", "--mount", "sh", "-c", f"mount --bind {memfs.path} /mnt; {script}", "sh")
        with subprocess.Popen([*inside, MEMFS, "copy", short, image], pass_fds=[device]) as program:
            try:
                assert program.wait(20) == 0
            except BaseException:
                program.kill()
                raise
    finally:
        os.close(device)
    assert is_copy(image, source)
