"""The tree as values, without a mount: names, attributes, links, contents, and what is not there."""

import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from process.reading import FLAT, mappings_of
from process.trees import plain_tree
from support.child import Child
from support.held import HeldMapping
from support.kinds import ODD_FILE_NAMES
from support.outside import read_maps
from support.pattern import PAGE
from support.reads import counted
from support.target import Target

from memfs.errors import NoSuchEntry
from memfs.image.source import Workspace
from memfs.target.identity import Identity, identify
from memfs.tree.nodes import Fixed, Name, Node, ProcessNode, VmaNode
from memfs.tree.tree import Attributes, Entry, Tree

ROOT, BY_NAME, SELF = Fixed(Name.ROOT), Fixed(Name.BY_NAME), Fixed(Name.SELF)


@pytest.fixture(scope="module")
def tree() -> Tree:
    return plain_tree()


def vmas_of(pid: int) -> ProcessNode:
    """The directory ``PID/vmas``."""
    return ProcessNode(identify(pid), Name.VMAS)


def vma_at(tree: Tree, pid: int, start: int) -> Entry:
    """The entry of the mapping that begins at *start*."""
    (entry,) = [each for each in tree.list(vmas_of(pid)) if each.name.startswith(b"%012x-" % start)]
    assert isinstance(entry.node, VmaNode)
    assert (entry.node.owner, entry.node.start) == (identify(pid), start)
    return entry


def described(mapping: HeldMapping) -> bytes:
    """The path as the kernel has it."""
    return (mapping.path or b"") + (b" (deleted)" if mapping.deleted else b"")


def test_every_name_that_is_listed_leads_to_what_was_listed(tree: Tree, everything: Target) -> None:
    process = ProcessNode(identify(everything.pid), Name.PROCESS)
    for directory in (process, vmas_of(everything.pid)):
        entries = tree.list(directory)
        assert len({entry.name for entry in entries}) == len(entries) > 5
        for entry in entries:
            found = tree.lookup(directory, entry.name)
            assert (found.name, found.node) == (entry.name, entry.node)
            assert found.attributes.number == entry.attributes.number
            if entry.attributes.settled:
                assert found.attributes.size_bytes == entry.attributes.size_bytes
            assert tree.inodes.node_of(entry.attributes.number) == entry.node


def test_there_is_a_file_for_each_mapping_that_can_be_read_and_for_no_other(
    tree: Tree, everything: Target
) -> None:
    readable = {
        (line.span.start, line.span.end, line.perms)
        for line in read_maps(everything.pid)
        if not line.path.startswith((b"[vvar", b"[vsyscall]", b"/secretmem"))
    }
    names = [entry.name.decode() for entry in tree.list(vmas_of(everything.pid))]
    parts = [re.fullmatch(r"([0-9a-f]{12})-([0-9a-f]{12})_(....)_[A-Za-z0-9._+-]{1,64}", n) for n in names]
    assert all(parts)
    assert {(int(p[1], 16), int(p[2], 16), p[3]) for p in parts if p} == readable
    assert names == sorted(names)


def test_sizes_are_exact(tree: Tree, everything: Target) -> None:
    for entry in tree.list(vmas_of(everything.pid)):
        start, _, rest = entry.name.partition(b"-")
        assert entry.attributes.size_bytes == int(rest[:12], 16) - int(start, 16)
    identity = identify(everything.pid)
    ends = [line.span.end for line in read_maps(everything.pid) if line.span.end < 1 << 56]
    assert tree.attributes(ProcessNode(identity, Name.MEM)).size_bytes == max(ends)
    maps = Path(f"/proc/{everything.pid}/maps").read_bytes()
    assert tree.attributes(ProcessNode(identity, Name.MAPS)).size_bytes == len(maps)


@pytest.mark.parametrize("kind", ["private-runs", "private-full", "none-data", "guard", "reserved-8g", "thp"])
def test_blocks_are_what_is_in_memory(tree: Tree, everything: Target, kind: str) -> None:
    for mapping in mappings_of(everything, kind):
        held = sum(span.length for span in mapping.touched)
        entry = vma_at(tree, everything.pid, mapping.start)
        assert entry.attributes.blocks * 512 == held
        assert tree.attributes(entry.node).blocks * 512 == held


def test_a_file_that_is_not_in_memory_has_a_block_so_that_tar_reads_it(
    tree: Tree, everything: Target
) -> None:
    for kind, blocks in (("file-256m", 8), ("zero-read", 0), ("none-reserved", 0)):
        (mapping,) = mappings_of(everything, kind)
        assert vma_at(tree, everything.pid, mapping.start).attributes.blocks == blocks


def test_owners_and_modes_keep_others_out(tree: Tree) -> None:
    expected = {b"mem": 0o100400, b"maps": 0o100400, b"vmas": 0o40500, b"proc": 0o120777, b"text": 0o120777}
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, user=65534, group=65533) as child:
        assert child.stdin is not None
        entry = tree.lookup(ROOT, str(child.pid).encode())
        assert entry.attributes.mode == stat.S_IFDIR | 0o500
        entries = {each.name: each.attributes for each in [*tree.list(entry.node), entry]}
        assert {name: entries[name].mode for name in expected} == expected
        assert {(each.uid, each.gid) for each in entries.values()} == {(65534, 65533)}
        vma = tree.list(vmas_of(child.pid))[0].attributes
        assert (vma.mode, vma.uid, vma.gid) == (stat.S_IFREG | 0o400, 65534, 65533)


def test_the_change_time_stands_still_while_the_modification_time_is_now(
    tree: Tree, everything: Target
) -> None:
    node = ProcessNode(identify(everything.pid), Name.MEM)
    first, second = tree.attributes(node), tree.attributes(node)
    assert first.ctime_ns == second.ctime_ns < first.mtime_ns <= second.mtime_ns


def test_links_lead_to_the_heap_the_stack_and_the_text(tree: Tree, everything: Target) -> None:
    process = ProcessNode(identify(everything.pid), Name.PROCESS)
    names = {entry.name for entry in tree.list(vmas_of(everything.pid))}
    for link, label in ((b"heap", b"heap"), (b"stack", b"stack"), (b"text", os.fsencode(executable()))):
        entry = tree.lookup(process, link)
        target = tree.contents.read_link(entry.node, os.getpid())
        assert stat.S_ISLNK(entry.attributes.mode)
        assert entry.attributes.size_bytes == len(target)
        assert target.startswith(b"vmas/")
        assert target.removeprefix(b"vmas/") in names
        assert target.endswith(b"_" + label)
    assert b"_r-xp_" in tree.contents.read_link(ProcessNode(process.owner, Name.TEXT), 1)
    proc = tree.lookup(process, b"proc")
    assert tree.contents.read_link(proc.node, 1) == b"/proc/%d" % everything.pid


def executable() -> str:
    """The file that a target runs: this Python."""
    return Path(sys.executable).resolve().name


def test_self_is_the_process_of_the_thread_that_asks(tree: Tree) -> None:
    assert tree.contents.read_link(SELF, os.getpid()) == b"%d" % os.getpid()
    answers: list[bytes] = []
    read_link = tree.contents.read_link
    thread = threading.Thread(target=lambda: answers.append(read_link(SELF, threading.get_native_id())))
    thread.start()
    thread.join()
    assert answers == [b"%d" % os.getpid()]
    with pytest.raises(NoSuchEntry):
        tree.contents.read_link(SELF, 0)


def test_extended_attributes_tell_the_line_of_maps(tree: Tree, everything: Target) -> None:
    for mapping in everything.mappings:
        if not mapping.whole_vma or mapping.kind == "secretmem":
            continue
        found = tree.contents.extended_attributes(
            VmaNode(identify(everything.pid), mapping.start, mapping.end)
        )
        values = {name.removeprefix(b"user.memfs."): value for name, value in found.items()}
        assert set(values) == {
            *(b"start", b"end", b"perms", b"offset", b"device", b"inode", b"path", b"rss", b"swap", b"flags")
        }
        assert (int(values[b"start"], 16), int(values[b"end"], 16)) == (mapping.start, mapping.end)
        assert (values[b"perms"].decode(), int(values[b"offset"], 16)) == (mapping.perms, mapping.offset)
        assert values[b"path"] == described(mapping)
        assert int(values[b"swap"]) == 0
        assert {b"rd" in values[b"flags"].split()} == {mapping.perms[0] == "r"}
        if mapping.kind in ("private-runs", "private-full", "none-data", "reserved-8g"):
            assert int(values[b"rss"]) == sum(span.length for span in mapping.touched)


def test_what_is_no_mapping_has_no_extended_attributes(tree: Tree, everything: Target) -> None:
    for name in (Name.PROCESS, Name.MEM, Name.MAPS):
        assert tree.contents.extended_attributes(ProcessNode(identify(everything.pid), name)) == {}


def test_contents_are_those_of_the_process(tree: Tree, everything: Target, workspace: Workspace) -> None:
    identity = identify(everything.pid)
    (mapping,) = mappings_of(everything, "private-runs")
    view = memoryview(bytearray(8 * PAGE))
    with FLAT.open(everything.pid, mapping.span) as flat:
        for node, offset in (
            (VmaNode(identity, mapping.start, mapping.end), 0),
            (ProcessNode(identity, Name.MEM), mapping.start),
        ):
            source = tree.contents.open(node)
            assert source.read_into(offset, view, workspace) == len(view)
            assert bytes(view) == mapping.expected(0, len(view))
            assert source.size_bytes in (mapping.length, flat.source.size_bytes)
            source.close()
    maps = tree.contents.open(ProcessNode(identity, Name.MAPS))
    text = memoryview(bytearray(maps.size_bytes))
    maps.read_into(0, text, workspace)
    maps.close()
    assert bytes(text) == Path(f"/proc/{everything.pid}/maps").read_bytes()


def test_directories_have_no_content(tree: Tree, everything: Target) -> None:
    for node in (ROOT, BY_NAME, vmas_of(everything.pid), ProcessNode(identify(everything.pid), Name.PROCESS)):
        with pytest.raises(IsADirectoryError):
            tree.contents.open(node)


def kernel_thread() -> int:
    """Some process without user memory; kthreadd's number where this pid namespace shows none."""
    sizes = {int(entry.parent.name): entry.read_text() for entry in Path("/proc").glob("[1-9]*/statm")}
    return next((pid for pid, size in sizes.items() if size.startswith("0 ")), 2)


def test_names_that_are_no_process_do_not_exist(tree: Tree) -> None:
    thread_ids: list[int] = []
    barrier = threading.Barrier(2)

    def live() -> None:
        thread_ids.append(threading.get_native_id())
        barrier.wait()
        barrier.wait()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    barrier.wait()
    mine = os.getpid()
    assert tree.lookup(ROOT, b"%d" % mine).node == ProcessNode(identify(mine), Name.PROCESS)
    for name in (
        *(b"", b"0", b"-1", b"nope", b"999999999999", b"4194304", b"\xff", b"9" * 255),
        *(b"0%d" % mine, b"+%d" % mine, b" %d" % mine, b"%d " % mine, b"%x" % mine + b"f", b"1_0"),
        *(b"%d" % kernel_thread(), b"%d" % thread_ids[0]),
    ):
        with pytest.raises(NoSuchEntry):
            tree.lookup(ROOT, name)
    barrier.wait()
    thread.join()


def test_names_that_are_no_mapping_do_not_exist(tree: Tree, everything: Target) -> None:
    (mapping,) = mappings_of(everything, "private-runs")
    directory = vmas_of(everything.pid)
    right = b"%012x-%012x_rw-p_anon" % (mapping.start, mapping.end)
    assert tree.lookup(directory, right).node == VmaNode(identify(everything.pid), mapping.start, mapping.end)
    for name in (
        *(
            b"",
            b"-",
            b"nope",
            b"heap",
            b"f" * 20 + b"-000",
            b"f" * 255,
            b"\xff" * 100,
            right.upper(),
            right + b"x",
        ),
        *(b"0x" + right, b"+" + right, b"0" + right, right[1:], right.replace(b"rw-p", b"r--p")),
        b"%012x-%012x_rw-p_anon" % (mapping.start, mapping.end + PAGE),
        b"%012x-%012x_rw-p_anon" % (mapping.start + PAGE, mapping.end),
        b"%x-%x_rw-p_anon" % (0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000),
    ):
        with pytest.raises(NoSuchEntry):
            tree.lookup(directory, name)
    for name in (b"info.json", b"nope", b"", b"\xff"):
        with pytest.raises(NoSuchEntry):
            tree.lookup(ProcessNode(directory.owner, Name.PROCESS), name)
    with pytest.raises(NoSuchEntry):
        tree.lookup(ProcessNode(directory.owner, Name.MEM), b"x")


def test_what_is_gone_does_not_exist(tree: Tree, tmp_path: Path) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        mapping, identity = target.mapping("private-runs"), identify(target.pid)
        vma = VmaNode(identity, mapping.start, mapping.end)
        target.unmap(mapping.start, mapping.length)
        for question in (tree.attributes, tree.contents.open, tree.contents.extended_attributes):
            with pytest.raises(NoSuchEntry):
                question(vma)
        target.exit()
        nodes: list[Node] = [
            vma,
            *(ProcessNode(identity, name) for name in (Name.PROCESS, Name.MEM, Name.MAPS, Name.HEAP)),
        ]
        for node in nodes:
            with pytest.raises(NoSuchEntry):
                tree.attributes(node)
        for node in nodes[2:4]:
            with pytest.raises(NoSuchEntry):
                tree.contents.open(node)
        with pytest.raises(NoSuchEntry):
            tree.lookup(ROOT, b"%d" % identity.pid)


def test_a_pid_with_another_start_is_not_there(tree: Tree) -> None:
    mine = identify(os.getpid())
    other = Identity(mine.pid, mine.start_ticks - 1)
    for name in (Name.PROCESS, Name.MEM, Name.VMAS, Name.MAPS):
        with pytest.raises(NoSuchEntry):
            tree.attributes(ProcessNode(other, name))
    with pytest.raises(NoSuchEntry):
        tree.list(ProcessNode(other, Name.VMAS))


@pytest.mark.parametrize(
    ("comm", "name"),
    [
        (b"my daemon", b"my_daemon"),
        (b"a/b\n(c) \xff", b"a_b__c___"),
        (b"..", None),
        (b".", None),
        (b"\0", b"_"),
    ],
)
def test_by_name_has_safe_names_that_lead_back(tree: Tree, tmp_path: Path, comm: bytes, name: bytes) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        target.set_name(comm)
        pid = b"%d" % target.pid
        directories = [
            entry for entry in tree.list(BY_NAME) if pid in {e.name for e in tree.list(entry.node)}
        ]
        (directory,) = directories
        assert re.fullmatch(rb"[A-Za-z0-9._+-]{1,64}", directory.name)
        assert directory.name not in (b".", b"..")
        if name is not None:
            assert directory.name == name
        assert tree.lookup(BY_NAME, directory.name).node == directory.node
        link = tree.lookup(directory.node, pid)
        assert tree.contents.read_link(link.node, 1) == b"../../" + pid
        with pytest.raises(NoSuchEntry):
            tree.lookup(directory.node, b"1")
    with pytest.raises(NoSuchEntry):
        tree.lookup(BY_NAME, b"no process is called so")


def test_a_name_that_was_found_is_found_again_by_asking_one_process(tree: Tree, tmp_path: Path) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        target.set_name(b"asked for")
        found = tree.lookup(BY_NAME, b"asked_for")
        with counted() as reads:
            assert tree.lookup(BY_NAME, b"asked_for").node == found.node
        assert 0 < reads.calls <= 2  # stat, and its end
        with counted() as reads, pytest.raises(NoSuchEntry):
            tree.lookup(BY_NAME, b"no process is called so")
        assert reads.calls > 4  # of this process and of the target at least, and of who started them


def test_a_name_is_there_as_long_as_any_process_has_it(tree: Tree, tmp_path: Path) -> None:
    with (
        Target("private-runs", directory=tmp_path) as first,
        Target("private-runs", directory=tmp_path) as second,
        Target("private-runs", directory=tmp_path) as third,
    ):
        for target in (first, second, third):
            target.set_name(b"shared name")
        number = tree.lookup(BY_NAME, b"shared_name").attributes.number
        for target in (third, second):
            target.exit()
            assert tree.lookup(BY_NAME, b"shared_name").attributes.number == number
        first.set_name(b"another")
        assert tree.lookup(BY_NAME, b"another").attributes.number != number
        with pytest.raises(NoSuchEntry):
            tree.lookup(BY_NAME, b"shared_name")


def test_a_lookup_of_a_process_reads_two_files(tree: Tree) -> None:
    with counted() as reads:
        tree.lookup(ROOT, b"%d" % os.getpid())
    assert 0 < reads.calls <= 4  # stat and status, and their ends


def test_a_listing_stands_though_its_process_has_ended(tree: Tree, tmp_path: Path) -> None:
    with Target("private-runs", directory=tmp_path) as target:
        directory = vmas_of(target.pid)
        lines = read_maps(target.pid)
        entries = tree.list(directory)
        target.exit()
        listed = {int(entry.name[:12], 16) for entry in entries}
        assert listed < {line.span.start for line in lines}
        assert len(listed) == len(entries) > 5
        with pytest.raises(NoSuchEntry):
            tree.list(directory)


def test_a_listing_does_not_tell_the_size_of_what_must_be_made_for_it(tree: Tree, everything: Target) -> None:
    process = ProcessNode(identify(everything.pid), Name.PROCESS)
    unsettled = [entry.attributes for entry in tree.list(process) if entry.name in (b"maps", b"core")]
    assert [(each.settled, each.name_timeout_s) for each in unsettled] == [(False, 0)] * 2
    assert tree.lookup(process, b"maps").attributes.settled


def test_odd_file_names_are_labels_without_what_a_shell_would_mind(tree: Tree, everything: Target) -> None:
    found = [
        vma_at(tree, everything.pid, mapping.start).name.split(b"_", 2)[2]
        for mapping in mappings_of(everything, "file-odd-names")
    ]
    assert len(found) == len(ODD_FILE_NAMES)
    for label, name in zip(found, ODD_FILE_NAMES, strict=True):
        if name not in (b"really there (deleted)", b"back\\012slash"):  # maps text does not tell these apart
            assert label == re.sub(rb"[^A-Za-z0-9._+-]", b"_", name)[:64]


_DEEP = """
import mmap, os, sys
os.chdir(sys.argv[1])
for _ in range(20):
    os.mkdir("d" * 250)
    os.chdir("d" * 250)
with open("file", "w+b") as file:
    file.write(b"deep" * 1024)
    file.flush()
    memory = mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE)
print(flush=True)
input()
"""


def test_a_file_deeper_than_path_max_has_its_name_and_content(
    tree: Tree, tmp_path: Path, workspace: Workspace
) -> None:
    command = [sys.executable, "-c", _DEEP, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            directory = vmas_of(child.pid)
            (entry,) = [each for each in tree.list(directory) if each.name.endswith(b"_file")]
            assert tree.lookup(directory, entry.name).node == entry.node
            source = tree.contents.open(entry.node)
            assert source.read_into(0, workspace.data[:PAGE], workspace) == PAGE
            assert bytes(workspace.data[:PAGE]) == b"deep" * 1024
            source.close()
        finally:
            child.kill()
            subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)


def test_a_heap_link_follows_the_heap(tree: Tree) -> None:
    with Child(str(Path(__file__).with_name("heap.py"))) as child:
        node = ProcessNode(identify(child.pid), Name.HEAP)
        before = tree.contents.read_link(node, 1)
        child.ask("grow")
        after = tree.contents.read_link(node, 1)
        line = next(line for line in read_maps(child.pid) if line.path == b"[heap]")
        assert before != after == b"vmas/%012x-%012x_rw-p_heap" % (line.span.start, line.span.end)


def test_a_number_is_stable_while_the_thing_lives(tree: Tree, everything: Target) -> None:
    def numbers() -> dict[bytes, Attributes]:
        return {entry.name: entry.attributes for entry in tree.list(vmas_of(everything.pid))}

    first, second = numbers(), numbers()
    assert {name: each.number for name, each in first.items()} == {
        name: each.number for name, each in second.items()
    }
    assert len({each.number for each in first.values()}) == len(first)
